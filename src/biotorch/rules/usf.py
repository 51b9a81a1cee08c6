"""Uniform sign-concordant feedback (uSF)."""

from __future__ import annotations

import dataclasses

from torch import Generator, Tensor

from biotorch.rules import initial
from biotorch.rules.base import FeedbackRule
from biotorch.rules.registry import register


@register("usf", transports="signs")
@dataclasses.dataclass(frozen=True, kw_only=True)
class UniformSign(FeedbackRule):
    """B = s sign(W) (Liao et al. 2016; paper, section 2.1).

    s is the standard deviation of the initializer `feedback_init`, as in section 4 of the paper:
    sqrt(2 / (fan_in + fan_out)) for `xavier`, 1 / sqrt(3 fan_in) for `kaiming`, 1 for `normal`, and the
    root mean square of the initial W for `weight`. sign(0) = 0. The buffer `feedback` holds s.
    """

    title = "uniform sign-concordant feedback"

    def initial_feedback(self, weight: Tensor, blank: Tensor, generator: Generator) -> Tensor:
        return weight.detach().new_ones(()).mul_(initial.scale(weight, self.feedback_distribution))

    def feedback(self, weight: Tensor, state: Tensor | None) -> Tensor:
        assert state is not None
        return weight.sign().mul_(state)
