"""Kolen-Pollack."""

from __future__ import annotations

import dataclasses
import warnings

from biotorch.rules.fa import FeedbackAlignment
from biotorch.rules.registry import register


@register("kp", transports="nothing")
@dataclasses.dataclass(frozen=True, kw_only=True)
class KolenPollack(FeedbackAlignment):
    """W and B receive the same update and the same decay (Kolen & Pollack 1994; Akrout et al. 2019, equations 16, 17).

    W <- (1 - lambda) W + u, B <- (1 - lambda) B + u, so that W - B shrinks by 1 - lambda per update. u is made of the
    product of what both ends of the connection see, which no weight has to travel for.

        u        a step of the optimizer by the gradient of W, which the backward pass hands to both
        lambda   lr * weight_decay of the optimizer
        B        stands where W would in the backward pass, equation 3 of the benchmark's paper

    Deviations: the papers have plain gradient descent; here B is a parameter that gets W's gradient, and whichever
    optimizer holds the two makes the steps. W - B then shrinks as that optimizer makes a weight without a gradient
    shrink: under SGD by lr * weight_decay / (1 - momentum) per update in the long run, under AdamW by
    1 - lr * weight_decay exactly. Adam divides a decay by second moments that W and B do not share: W - B need not
    vanish. Where `constrain_weights` rescales W, B is rescaled by the same factor. A penalty on W in the loss reaches W
    alone: B has the gradient of the product, without it.

    Warns:
        UserWarning: at the first update, if the optimizer has no weight decay for W: W - B then stays as it is.
    """

    learns = True

    def check_decay(self, layer: str, decay: float | None) -> None:
        if not decay:
            warnings.warn(
                f"kp: the optimizer has no weight decay for {layer}, so W - B stays as it is, and B turns to W only as "
                "far as both outgrow it: give it one (weight_decay=...)",
                stacklevel=2,
            )
