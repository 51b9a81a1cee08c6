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

    W <- (1 - lambda) W + u, B <- (1 - lambda) B + u, so that W - B shrinks by 1 - lambda per update. u is made of the
    product of what both ends of the connection see, which no weight has to travel for.

        u        a step of the optimizer by `update.gradient`, which is that of W
        lambda   lr * weight_decay of the optimizer
        B        stands where W would in the backward pass, equation 3 of the benchmark's paper

    Deviations: the papers have plain gradient descent; here B steps by an optimizer like W's, whichever it is, with
    a momentum and a decay of its own. W - B then shrinks as that optimizer makes a weight without a gradient shrink:
    under SGD by lr * weight_decay / (1 - momentum) per update in the long run, under AdamW by 1 - lr * weight_decay
    exactly. Adam divides a decay by second moments that W and B do not share: W - B need not vanish. Where
    `constrain_weights` rescales W, B is rescaled by the same factor. A penalty on W in the loss is no decay: its
    gradient brings W into B, and the audit, which looks at what the rule does, does not see it. The optimizer of B is
    built of the defaults and the parameter group of W's: of an optimizer of one's own, settings that are kept
    elsewhere are not seen.

    Warns:
        UserWarning: at the first update, if there is no weight decay: W - B then stays as it is.

    Raises:
        RuntimeError: the optimizer evaluates the loss itself (LBFGS).
    """

    def after_update(self, update: Update) -> None:
        if update.number == 1 and update.decay == 0:
            warnings.warn(
                f"kp: the optimizer has no weight decay for {update.layer or 'a layer'}, so W - B stays as it is and B "
                "does not turn to W: give it one (weight_decay=...)",
                stacklevel=2,
            )
        update.descend(update.gradient)
        update.feedback.mul_(update.rescaled)
