"""Direct feedback alignment."""

from __future__ import annotations

import dataclasses

from torch import Generator, Tensor

from biotorch.rules import initial
from biotorch.rules.base import DirectRule
from biotorch.rules.registry import register


@register("dfa", transports="nothing")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DirectFeedbackAlignment(DirectRule):
    """The output layer's error e goes to every layer by a fixed random B_i (Nokland 2016; paper, equation 4).

    delta W_i = -((B_i delta z_N) * phi'(z_i)) y_{i-1}^T, with e = delta z_N = dL/dz_N. B_i is
    (n_out, in_features) for a linear layer, whose positions all receive the same projection unless the
    output has the same positions; for a convolution it is a kernel (n_out, C_in, *kernel_size), applied to
    the error held constant over space, as the paper's code has it (Nokland's B is dense).

    The first dimension is the batch everywhere.

    Raises:
        ValueError: `feedback_init="weight"`: B has not W's shape.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.feedback_distribution == "weight":
            raise ValueError("feedback_init='weight' needs B in the shape of W, which a direct rule's is not")

    def initial_feedback(self, weight: Tensor, blank: Tensor, generator: Generator) -> Tensor:
        return initial.draw(blank, self.feedback_distribution, generator)
