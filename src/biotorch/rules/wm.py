"""Weight mirror."""

from __future__ import annotations

import dataclasses

from biotorch.rules.base import Update
from biotorch.rules.fa import FeedbackAlignment
from biotorch.rules.registry import register


@register("wm", transports="nothing")
@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightMirror(FeedbackAlignment):
    """Noise through each layer teaches B what W is (Akrout et al. 2019, equation 7 and its appendix).

    After every update of W comes a mirror phase: B <- (1 - lambda_B) B + eta_B mean(y x^T) with y = W x of
    white noise x, whose expectation is W: B turns to W eta_B / lambda_B.

        x, y       `update.noise`, `update.respond`: activity at both ends of the layer, bias off
        eta_B      `mirror_rate`
        lambda_B   `mirror_decay`

    Growth control: noise of variance 1 sent back through B may not come out stronger than `growth_limit`; B is
    scaled down where it would.

    Deviations: one short mirror phase per update instead of alternating long ones, without the nonlinearity behind
    the layer; a convolution mirrors at one position; growth control takes the expected strength inside an image at
    stride 1, not a sample, and only ever shrinks B. A transposed convolution mirrors from its output side, W being
    kept that way round.

    Args:
        mirror_rate: eta_B.
        mirror_decay: lambda_B.
        mirror_batch: patterns of noise per mirror phase.
        growth_limit: standard deviation of the answer of B to white noise.

    Raises:
        ValueError: one of them is not above 0, a decay above 1.
    """

    mirror_rate: float = 0.1
    mirror_decay: float = 0.1
    mirror_batch: int = 128
    growth_limit: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_number("mirror_rate", "growth_limit")
        self.require_number("mirror_decay", most=1)
        self.require_number("mirror_batch", whole=True)

    def after_update(self, update: Update) -> None:
        x, feedback = update.noise(self.mirror_batch), update.feedback
        correlation = update.respond(x).T @ x / self.mirror_batch
        feedback.mul_(1 - self.mirror_decay).add_(correlation.view(feedback.shape), alpha=self.mirror_rate)
        strength = (feedback.square().sum() / (feedback.shape[1] * update.groups)).sqrt()
        feedback.div_((strength / self.growth_limit).clamp(min=1))
