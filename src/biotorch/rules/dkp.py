"""Direct Kolen-Pollack."""

from __future__ import annotations

import dataclasses

import torch

from biotorch.rules.dfa import DirectFeedbackAlignment
from biotorch.rules.registry import register
from biotorch.rules.update import Update


@register("dkp", transports="nothing")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DirectKolenPollack(DirectFeedbackAlignment):
    """DFA whose B learns as the output layer's W does (Webster, Choi & Ahn 2021).

    delta B_i = -eta_B e y_{i-1}^T - lambda_B B_i beside DFA's update of W (equation 4): the product of the error
    that B brings and the activity that it meets, as if the layer's input went straight to the output.

        e y^T      `update.product`, summed over the batch, averaged over the positions that hear one error
        eta_B      `feedback_rate`, by default the optimizer's own rate
        lambda_B   eta_B * `feedback_decay`, by default the optimizer's weight_decay

    Deviations: B steps by an optimizer like W's, whichever it is. A B that many positions share (`feedback="kernel"`,
    tokens) takes the mean of what each would learn alone: the sum lets it outgrow W. A loss scaler multiplies e, which
    the optimizer undoes for W alone: `biotorch.targets(y, loss_scale=...)` tells it, and runs from a configuration do
    so by themselves. In a process group all processes have to take the same steps: what they found is added up.
    An optimizer that steps within the backward pass comes before the product, so that B gets none: step after it.
    What a skipped step has found is dropped by `zero_grad()` before the next forward pass; after it, or with
    `set_to_none=False`, it stays for the next step. Batch Manhattan
    takes signs of what W descends by, not of the product.

    Args:
        feedback_rate: learning rate of B.
        feedback_decay: weight decay of B.

    Raises:
        ValueError: they are negative; `feedback="shared"` or `points`, in which no layer has a B of its own.
    """

    feedback_rate: float | None = None
    feedback_decay: float | None = None

    observes_product = True

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [option for option in ("feedback_rate", "feedback_decay") if getattr(self, option) is not None]
        self.require_number(*given, zero=True)
        if self.feedback == "shared" or self.points:
            raise ValueError("dkp learns a B for each layer: feedback='shared' and points have none")

    def after_update(self, update: Update) -> None:
        product = torch.zeros_like(update.feedback) if update.product is None else update.product
        update.descend(product, rate=self.feedback_rate, decay=self.feedback_decay)
