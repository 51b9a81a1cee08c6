"""Fixed random-magnitude sign-concordant feedback (frSF)."""

from __future__ import annotations

import dataclasses

from torch import Generator, Tensor

from biotorch.rules import initial
from biotorch.rules.base import FeedbackRule, RandomFeedback
from biotorch.rules.registry import register


@register("frsf", transports="signs")
@dataclasses.dataclass(frozen=True, kw_only=True)
class FixedRandomSign(RandomFeedback, FeedbackRule):
    """B = |R| sign(W) elementwise, R drawn once (Liao et al. 2016; Moskovitz et al. 2018; paper, section 2.1).

    The absolute value is the paper's change to Liao et al.; without it B would have the signs of R times W.
    """

    title = "fixed random-magnitude sign-concordant feedback"

    def initial_feedback(self, weight: Tensor, blank: Tensor, generator: Generator) -> Tensor:
        if self.feedback_distribution == "weight":
            return weight.detach().abs()
        return initial.draw(blank, self.feedback_distribution, generator).abs_()

    def feedback(self, weight: Tensor, state: Tensor | None) -> Tensor:
        assert state is not None
        return weight.sign().mul_(state)
