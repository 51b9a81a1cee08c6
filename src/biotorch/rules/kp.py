"""Kolen-Pollack (KP)."""

from __future__ import annotations

import dataclasses
import warnings

from biotorch.rules.fa import FeedbackAlignment
from biotorch.rules.registry import register


@register("kp", transports="nothing")
@dataclasses.dataclass(frozen=True, kw_only=True)
class KolenPollack(FeedbackAlignment):
    """W and B receive the same update and the same decay (Kolen & Pollack 1994; Akrout et al. 2019, equations 16, 17).

    W <- (1 - lambda) W + u, B <- (1 - lambda) B + u, so that W - B shrinks by the factor 1 - lambda per update. u is
    the product of the activities at both ends of the connection, so no weight has to be transported for it.

        u        step of the optimizer by the gradient of W, which the backward pass gives to W and B
        lambda   lr * weight_decay of the optimizer
        B        takes the place of W in the backward pass, equation 3 of the benchmark's paper

    Deviations: the papers use plain gradient descent. Here B is a parameter that gets W's gradient, and the user's
    optimizer updates both. W - B then shrinks like a weight without a gradient under that optimizer: under SGD
    by lr * weight_decay / (1 - momentum) per update in the long run, under AdamW by the factor 1 - lr * weight_decay
    exactly. Adam divides the decay by second moments, which differ between W and B, so W - B need not vanish. If
    `constrain_weights` rescales W, B is rescaled by the same factor. A penalty on W in the loss changes W alone:
    B gets the gradient of the product without it.

    Warns:
        UserWarning: at the first update, if the optimizer has no weight decay for W; W - B then stays as it is.
    """

    title = "Kolen-Pollack"
    learns = True

    def check_decay(self, layer: str, decay: float | None) -> None:
        if not decay:
            warnings.warn(
                f"kp: the optimizer has no weight decay for {layer}, so W - B stays as it is, and B aligns with W only "
                "as far as both outgrow this difference: set weight_decay=... in the optimizer",
                stacklevel=2,
            )
