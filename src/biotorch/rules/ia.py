"""Information alignment (IA)."""

from __future__ import annotations

import dataclasses

from biotorch.rules.fa import FeedbackAlignment
from biotorch.rules.registry import register
from biotorch.rules.update import Update


@register("ia", transports="nothing")
@dataclasses.dataclass(frozen=True, kw_only=True)
class InformationAlignment(FeedbackAlignment):
    """B learns to reconstruct the layer's input from its output (Kunin et al. 2020, section 3).

    B descends a layer-wise regularizer of three primitives at its own rate eta_B:

        R = -alpha tr(x^T B^T y) + beta / 2 |B|^2 + gamma / 2 |B^T y|^2     amp, decay, null

    with y = W x. On white noise x it converges to B = alpha (gamma W W^T + beta)^-1 W. This B has an alignment angle
    of less than 90 degrees for every beta and gamma. `null` bounds B, while in the weight mirror (gamma = 0) B grows
    with W.

        x, y                `update.noise`, `update.respond`: activity at both ends of the layer, without the bias
        eta_B               `feedback_rate`
        alpha, beta, gamma  `amp`, `feedback_decay`, `null`

    Deviations: x is white noise after every update of W, as in `wm`, while the paper takes the activations of the
    training batch. So no statistics have to be shared between processes, and correlated inputs do not distort B. The
    paper searches its constants for each task; the defaults are ours. The steps are explicit. They are stable while
    eta_B (beta + gamma s^2) < 2, with s the largest singular value of W. A W drawn from N(0, 1) breaks this bound, so
    `init: normal` needs a smaller `null`.

    Args:
        feedback_rate: eta_B.
        amp, feedback_decay, null: weights of the three primitives.
        noise_batch: patterns of noise per update.

    Raises:
        ValueError: an option is not above 0.
    """

    title = "information alignment"

    feedback_rate: float = 0.1
    amp: float = 1.0
    feedback_decay: float = 1.0
    null: float = 0.1
    noise_batch: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_number("feedback_rate", "amp", "feedback_decay", "null")
        self.require_number("noise_batch", whole=True)

    def after_update(self, update: Update) -> None:
        x, feedback = update.noise(self.noise_batch), update.feedback
        y = update.respond(x)
        rest = self.amp * x - self.null * (y @ feedback.flatten(1))
        ascent = (y.T @ rest / self.noise_batch).view(feedback.shape)
        feedback.mul_(1 - self.feedback_rate * self.feedback_decay).add_(ascent, alpha=self.feedback_rate)
