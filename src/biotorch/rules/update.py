"""What a rule sees of an optimizer's step on one weight matrix."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import torch
from torch import Generator, Tensor

#: What a rule can ask for beside W, B and the rates (`Rule.observes`): making it costs something.
Observation = Literal["change", "gradient"]


class Update:
    """One optimizer step on W, for the rules that learn or redraw their B.

    Everything but `weight` is local to the connection or travels as activity. Reading `weight` is weight
    transport: `biotorch.audit` replaces it by noise and looks whether B becomes another.

    Attributes:
        weight: W after the step, (out, in, ...).
        feedback: B, to be changed in place.
        number: 1 for the first update since the conversion.
        rate: learning rate of W.
        decay: share of W that the step took away as weight decay: lr * weight_decay, over 1 - momentum.
        change: in the shape of W, what the step added to it apart from that decay. None unless the rule
            observes "change".
        gradient: in the shape of B, sum over the batch of e^T x: the error that a direct rule hands to the
            layer with the input that it meets there. None unless the rule observes "gradient".
    """

    def __init__(
        self,
        weight: Tensor,
        feedback: Tensor,
        draw: Callable[[], Generator],
        *,
        number: int = 1,
        rate: float = 0.0,
        decay: float = 0.0,
        change: Tensor | None = None,
        gradient: Tensor | None = None,
        forward: Tensor | None = None,
    ) -> None:
        self.weight, self.feedback, self._draw = weight, feedback, draw
        self.number, self.rate, self.decay = number, rate, decay
        self.change, self.gradient = change, gradient
        self._forward = weight if forward is None else forward

    @functools.cached_property
    def generator(self) -> Generator:
        """The layer's own, for this update: the same on every process and in a resumed run."""
        return self._draw()

    def noise(self, n: int) -> Tensor:
        """n patterns of N(0, 1) noise at the layer's input (a convolution: at one position), (n, fan_in)."""
        fan_in = self._forward[0].numel()
        fresh = torch.empty(n, fan_in, device=self.generator.device).normal_(generator=self.generator)
        return fresh.to(self._forward)

    def respond(self, x: Tensor) -> Tensor:
        """What the layer answers to activity (n, fan_in) at its input, bias off: x W^T, (n, out)."""
        return x @ self._forward.flatten(1).T
