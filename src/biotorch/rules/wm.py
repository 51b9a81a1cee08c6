"""Weight mirror (WM)."""

from __future__ import annotations

import dataclasses

from biotorch.rules.fa import FeedbackAlignment
from biotorch.rules.registry import register
from biotorch.rules.update import Update


@register("wm", transports="nothing")
@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightMirror(FeedbackAlignment):
    """B learns W from noise that is sent through the layer (Akrout et al. 2019, equation 7 and its appendix).

    A mirror phase follows every update of W: B <- (1 - lambda_B) B + eta_B mean(y x^T), with y = W x for white
    noise x. The expectation of y x^T is W, so B converges to W eta_B / lambda_B.

        x, y       `update.noise`, `update.respond`: activity at both ends of the layer, without the bias
        eta_B      `mirror_rate`
        lambda_B   `mirror_decay`

    Growth control: if noise of variance 1 sent back through B would come out with a standard deviation above
    `growth_limit`, B is scaled down to that limit.

    Deviations: one short mirror phase per update instead of long alternating ones, without the nonlinearity behind
    the layer. A convolution mirrors at one position. Growth control uses the expected strength inside an image at
    stride 1, not a sample, and only ever shrinks B. A transposed convolution mirrors from its output side, because
    its W is kept in that orientation.

    Args:
        mirror_rate: eta_B.
        mirror_decay: lambda_B.
        mirror_batch: patterns of noise per mirror phase.
        growth_limit: largest standard deviation of the response of B to white noise.

    Raises:
        ValueError: an option is not above 0, or the decay is above 1.
    """

    title = "weight mirror"

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
