"""View that a rule has of one update of W."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor


class Update:
    """One update of W, for rules that redraw B or let it follow W.

    A rule may use activity (`noise`, `respond`) freely. Reading `weight` is weight transport: `biotorch.audit`
    replaces `weight` by noise and checks whether B changes with it.

    Attributes:
        weight: W after the update, (out, in, ...).
        feedback: B, to be changed in place; a mapping of names to tensors if B is made of several.
        layer: dotted name of the layer, for messages.
        number: number of the update, 1 for the first since the conversion.
        groups: number of groups of a convolution; 1 elsewhere.

    Examples:
        >>> update = biotorch.rules.Update(torch.ones(3, 4), torch.zeros(3, 4), torch.Generator)
        >>> update.respond(update.noise(5)).shape  # activity alone: W is not read
        torch.Size([5, 3])
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
        """The layer's own random generator for this update, the same on every process and in a resumed run."""
        return self._draw()

    def noise(self, n: int) -> Tensor:
        """Draw n patterns (n, fan_in) of N(0, 1) noise for the layer's input (for a convolution, at one position)."""
        fan_in = self._forward[0].numel()
        fresh = torch.empty(n, fan_in, device=self.generator.device).normal_(generator=self.generator)
        return fresh.to(self._forward)

    def respond(self, x: Tensor) -> Tensor:
        """The layer's output x W^T, (n, out), for activity x (n, fan_in) at its input, without the bias."""
        return x @ self._forward.flatten(1).T
