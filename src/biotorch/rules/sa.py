"""Symmetric alignment (SA)."""

from __future__ import annotations

import dataclasses

from biotorch.rules.fa import FeedbackAlignment
from biotorch.rules.registry import register
from biotorch.rules.update import Update


@register("sa", transports="weights")
@dataclasses.dataclass(frozen=True, kw_only=True)
class SymmetricAlignment(FeedbackAlignment):
    """B follows W at its own rate (Kunin et al. 2020, section 4).

    B descends R = 1/2 |W - B|^2 (the primitives decay and self): B <- B - eta_B (B - W) after every update of W.
    The backward pass never reads W, but R does. Kunin et al. call the rule non-local, and the audit's verdict is
    `weights`.

        eta_B   `feedback_rate`

    Deviations: B takes plain gradient steps; in the paper one optimizer updates W and B, and R has a weight.

    Args:
        feedback_rate: eta_B, at most 1; the value 1 copies W.

    Raises:
        ValueError: `feedback_rate` is not above 0 and at most 1.
    """

    title = "symmetric alignment"

    feedback_rate: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_number("feedback_rate", most=1)

    def after_update(self, update: Update) -> None:
        gradient = update.feedback - update.weight
        update.feedback.sub_(gradient, alpha=self.feedback_rate)
