"""What a conversion is going to do, and what is said when it cannot."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from biotorch.rules import DirectRule, Rule


class ConversionError(ValueError):
    """A network cannot be converted as asked; the message lists every problem. The network is unchanged."""


class ConversionWarning(UserWarning):
    """A conversion did less than it seems: layers stay on backpropagation, or no shortcut was cut."""


class Planned(NamedTuple):
    name: str
    layer: nn.Module
    rule: Rule
    #: Whether the layer is the first of a block that is a feedback point.
    at_point: bool = False

    @property
    def form(self) -> str | None:
        """Under a direct rule, the form of B: kernel, dense or shared."""
        return self.rule.feedback if isinstance(self.rule, DirectRule) else None
