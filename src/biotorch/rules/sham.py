"""The sham control: backpropagation through the machinery of a learned B."""

from __future__ import annotations

import dataclasses

from torch import Generator, Tensor

from biotorch.rules.base import FeedbackRule
from biotorch.rules.registry import register
from biotorch.rules.update import Update


@register("sham", transports="weights")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Sham(FeedbackRule):
    """A control that runs the whole machinery of a learned B with B = W, and must give backpropagation's weights.

    B is a buffer, starts at W whatever `feedback_init` says, and is set to W after every update. Any difference to
    backpropagation is a defect of the machinery. The audit must find that this rule transports weights.
    """

    title = "backpropagation through a copy of W, a control"

    def initial_feedback(self, weight: Tensor, blank: Tensor, generator: Generator) -> Tensor:
        return weight.detach().clone()

    def after_update(self, update: Update) -> None:
        update.feedback.copy_(update.weight)
