"""Batchwise random-magnitude sign-concordant feedback (brSF)."""

from __future__ import annotations

import dataclasses

import torch

from biotorch.rules import initial
from biotorch.rules.frsf import FixedRandomSign
from biotorch.rules.registry import register
from biotorch.rules.update import Update


@register("brsf", transports="signs")
@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchwiseRandomSign(FixedRandomSign):
    """B = |R| sign(W), R drawn again after each update (Liao et al. 2016; Moskovitz et al. 2018; paper, section 2.1).

    The new R is drawn at the first use of B after an update. Evaluation, gradient accumulation and several forwards
    before one backward leave R as it is. Entries that `feedback_density` set to zero stay zero.

    Raises:
        ValueError: `feedback_init` is `weight`, which is no distribution to draw from again.
    """

    title = "batchwise random-magnitude sign-concordant feedback"
    redraws = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.feedback_distribution == "weight":
            raise ValueError(
                "brsf draws R again after every update, and feedback_init='weight' is no distribution to draw "
                f"from: use one of {', '.join(initial.INITS)}, or the rule frsf, which draws R once"
            )

    def after_update(self, update: Update) -> None:
        magnitudes = update.feedback
        missing = magnitudes == 0 if self.feedback_density < 1 else None
        initial.draw_magnitudes(magnitudes, self.feedback_distribution, update.generator, self.feedback_scale)
        if missing is not None:  # no other entry may round to zero, because it would be missing from then on
            magnitudes.clamp_(min=torch.finfo(magnitudes.dtype).tiny).masked_fill_(missing, 0)
