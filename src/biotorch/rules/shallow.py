"""The shallow control, in which only the output layer learns."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from biotorch.rules.base import FeedbackRule
from biotorch.rules.registry import register


@register("shallow", transports="nothing")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Shallow(FeedbackRule):
    """A linear readout of random features: no error leaves the output layer, all other parameters are frozen.

    A rule must beat this control before its hidden layers can be said to learn (Bartunov et al. 2018). Conversion
    switches off `requires_grad` of everything in front of the output layer, norms included, so that weight decay
    and DDP leave it alone. The statistics of batch norm still follow the batches. Converting again or
    `biotorch.revert` switches `requires_grad` back on.
    """

    title = "training of the output layer only, a control"
    trains_output_only = True
    has_feedback = False

    @property
    def needs_network(self) -> str:
        return "rule 'shallow'"

    def feedback(self, weight: Tensor, state: Tensor | None) -> Tensor:
        return weight.new_zeros(weight.shape)
