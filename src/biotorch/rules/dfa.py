"""Direct feedback alignment (DFA)."""

from __future__ import annotations

import dataclasses

from torch import Generator, Tensor

from biotorch.rules import initial
from biotorch.rules.base import DirectRule
from biotorch.rules.registry import register


@register("dfa", transports="nothing")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DirectFeedbackAlignment(DirectRule):
    """The output layer's error e goes to every layer through a fixed random B_i (Nøkland 2016; paper, equation 4).

    delta W_i = -((B_i delta z_N) * phi'(z_i)) y_{i-1}^T, with e = delta z_N = dL/dz_N.

    For a linear layer B_i is (n_out, in_features). All positions of an example receive the same projection, unless
    the output has the same positions as the layer. For a convolution B_i is a kernel (n_out, C_in, *kernel_size),
    applied to the error of each place if the output is an image, and else to the error held constant over space, as in
    the paper's code (Nøkland's B is dense).

    The first dimension is the batch everywhere.

    Raises:
        ValueError: `feedback_init` is `weight`, but B does not have the shape of W.
    """

    title = "direct feedback alignment"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.feedback_distribution == "weight":
            raise ValueError(
                "feedback_init='weight' needs a B in the shape of W, but the B of a direct rule has another shape: "
                f"use one of {', '.join(initial.INITS)}"
            )

    def initial_feedback(self, weight: Tensor, blank: Tensor, generator: Generator) -> Tensor:
        return initial.draw(blank, self.feedback_distribution, generator)
