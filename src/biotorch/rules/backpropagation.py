"""Backpropagation: the reference that every other rule is measured against."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from biotorch.rules.base import FeedbackRule
from biotorch.rules.registry import register


@register("backpropagation", "bp", transports="weights")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Backpropagation(FeedbackRule):
    """The error goes backwards through W itself (Rumelhart et al. 1986; paper, equation 2).

    It is identical to plain PyTorch. As a rule it takes the same options as the others, so that a
    comparison changes one word. It has no B, so `feedback_init` has no effect.
    """

    title = "backpropagation"
    has_feedback = False

    def feedback(self, weight: Tensor, state: Tensor | None) -> Tensor:
        return weight
