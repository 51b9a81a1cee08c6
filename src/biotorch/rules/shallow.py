"""The shallow control: only the output layer learns."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from biotorch.rules.base import FeedbackRule
from biotorch.rules.registry import register


@register("shallow", transports="nothing")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Shallow(FeedbackRule):
    """No error leaves the output layer, and all other parameters are frozen: a linear readout of random features.

    What a rule has to beat before its hidden layers can be said to learn (Bartunov et al. 2018). Conversion
    switches off `requires_grad` of everything in front of the output layer, norms included, so that weight decay
    and DDP leave it alone; the statistics of batch norm still follow the batches. Converting again or
    `biotorch.revert` switches it back on.
    """

    trains_output_only = True

    @property
    def needs_network(self) -> str:
        return "rule 'shallow'"

    def feedback(self, weight: Tensor, state: Tensor | None) -> Tensor:
        return weight.new_zeros(weight.shape)
