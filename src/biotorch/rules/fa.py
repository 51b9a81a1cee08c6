"""Feedback alignment."""

from __future__ import annotations

import dataclasses

from torch import Generator, Tensor

from biotorch.rules import initial
from biotorch.rules.base import FeedbackRule, register


@register("fa", transports="nothing")
@dataclasses.dataclass(frozen=True, kw_only=True)
class FeedbackAlignment(FeedbackRule):
    """B is random and fixed (Lillicrap et al. 2014, 2016; paper, equation 3).

    delta W_i = -((B_{i+1} delta z_{i+1}) * phi'(z_i)) y_{i-1}^T, with B in the shape of W and drawn
    by `feedback_init`.
    """

    def initial_feedback(self, weight: Tensor, blank: Tensor, generator: Generator) -> Tensor:
        if self.feedback_distribution == "weight":
            return weight.detach().clone()
        return initial.draw(blank, self.feedback_distribution, generator)

    def feedback(self, weight: Tensor, state: Tensor | None) -> Tensor:
        assert state is not None
        return state
