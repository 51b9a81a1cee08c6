"""The sham control: backpropagation dressed as feedback alignment."""

from __future__ import annotations

import dataclasses

from torch import Generator, Tensor

from biotorch.rules.base import FeedbackRule, Update
from biotorch.rules.registry import register


@register("sham", transports="weights")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Sham(FeedbackRule):
    """All of the machinery of a learned feedback, with B = W: it has to give backpropagation's weights.

    B is a buffer, starts at W whatever `feedback_init` says, and is set to W after every update. A difference to
    backpropagation is a defect of the machinery, and an audit that does not call this transport is worth nothing.
    """

    def initial_feedback(self, weight: Tensor, blank: Tensor, generator: Generator) -> Tensor:
        return weight.detach().clone()

    def after_update(self, update: Update) -> None:
        update.feedback.copy_(update.weight)
