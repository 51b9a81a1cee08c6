"""What a rule sees of an update of one weight matrix."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor


class Update:
    """One update of W, for the rules that redraw their B or let it follow W.

    Activity travels; reading `weight` is weight transport: `biotorch.audit` replaces it by noise and looks whether B
    becomes another.

    Attributes:
        weight: W after the update, (out, in, ...).
        feedback: B, to be changed in place; tensors by name where it is made of several.
        layer: its dotted name, for messages.
        number: 1 for the first update since the conversion.
        groups: those of a convolution; 1 elsewhere.
    """

    def __init__(
        self,
        weight: Tensor,
        feedback: Any,
        draw: Callable[[], Generator],
        *,
        layer: str = "",
        number: int = 1,
        groups: int = 1,
        forward: Tensor | None = None,
    ) -> None:
        self.weight, self.feedback, self._draw = weight, feedback, draw
        self.layer, self.number, self.groups = layer, number, groups
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
