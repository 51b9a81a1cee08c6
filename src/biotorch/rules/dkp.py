"""Direct Kolen-Pollack."""

from __future__ import annotations

import dataclasses

from biotorch.rules.dfa import DirectFeedbackAlignment
from biotorch.rules.registry import register


@register("dkp", transports="nothing")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DirectKolenPollack(DirectFeedbackAlignment):
    """DFA whose B learns as the output layer's W does (Webster, Choi & Ahn 2021).

    delta B_i = -eta_B e y_{i-1}^T - lambda_B B_i beside DFA's update of W (equation 4): the product of the error
    that B brings and the activity that it meets, as if the layer's input went straight to the output.

        e y^T      the gradient of B, summed over the batch, averaged over the positions that hear one error
        eta_B      learning rate of B's parameter group
        lambda_B   eta_B * weight decay of that group

    B is a parameter, and the user's optimizer does the rest. It has to learn more slowly than W: give it a group with a
    rate of its own, `{"params": biotorch.feedback_parameters(model), "lr": ...}`, in a configuration `feedback_rate`
    and `feedback_decay`.

    Deviations: a B that many positions share (`feedback="kernel"`, tokens) takes the mean of what each would learn
    alone: the sum lets it outgrow W.

    Raises:
        ValueError: `feedback="shared"` or `points`, in which no layer has a B of its own.
    """

    learns = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.feedback == "shared" or self.points:
            raise ValueError("dkp learns a B for each layer: feedback='shared' and points have none")
