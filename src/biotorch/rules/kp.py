"""Kolen-Pollack."""

from __future__ import annotations

import dataclasses
import warnings

from biotorch.rules.fa import FeedbackAlignment
from biotorch.rules.registry import register
from biotorch.rules.update import Update


@register("kp", transports="nothing")
@dataclasses.dataclass(frozen=True, kw_only=True)
class KolenPollack(FeedbackAlignment):
    """W and B receive the same update and the same decay (Kolen & Pollack 1994; Akrout et al. 2019, equations 16, 17).

    W <- (1 - lambda) W + u, B <- (1 - lambda) B + u, so that W - B shrinks by 1 - lambda per update. u is the
    product of what both ends of the connection see, which no weight has to travel for.

        u        `update.change`: what the optimizer added to W, whichever it is, momentum included
        lambda   `update.decay`: lr * weight_decay, over 1 - momentum
        B        stands where W would in the backward pass, equation 3 of the benchmark's paper

    Deviations: u and lambda are those of the optimizer (the papers have plain gradient descent). The decay
    is taken at its stationary value lr * weight_decay / (1 - momentum); Adam divides a coupled decay by its second
    moment, which no fixed lambda describes: u then holds the difference, for W and B alike, and AdamW is exact.

    Warns:
        UserWarning: at the first update, if there is no weight decay: W - B then stays as it is.
    """

    observes = ("change",)

    def after_update(self, update: Update) -> None:
        assert update.change is not None
        if update.number == 1 and update.decay == 0:
            warnings.warn(
                "kp: the optimizer has no weight decay, so W - B stays as it is and B does not turn to W: "
                "give it one (weight_decay=...)",
                stacklevel=2,
            )
        update.feedback.mul_(1 - update.decay).add_(update.change)
