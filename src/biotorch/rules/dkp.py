"""Direct Kolen-Pollack (DKP)."""

from __future__ import annotations

import dataclasses

from biotorch.rules.dfa import DirectFeedbackAlignment
from biotorch.rules.registry import register


@register("dkp", transports="nothing")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DirectKolenPollack(DirectFeedbackAlignment):
    """DFA whose B learns in the way of the output layer's W (Webster, Choi & Ahn 2021).

    delta B_i = -eta_B e y_{i-1}^T - lambda_B B_i, in addition to DFA's update of W (equation 4). The product e y^T
    is the gradient that B would have as a weight from the layer's input straight to the output.

        e y^T      gradient of B, summed over the batch and averaged over the positions that receive the same error
        eta_B      learning rate of B's parameter group
        lambda_B   eta_B * weight decay of that group

    B is a parameter that the user's optimizer updates. It has to learn more slowly than W: give it a parameter group
    with a rate of its own, `{"params": biotorch.feedback_parameters(model), "lr": ...}`, or in a configuration
    `feedback_rate` and `feedback_decay`.

    Deviations: if many positions share one B (`feedback="kernel"`, tokens), its gradient is the mean over the
    positions, because the sum lets B outgrow W.

    Raises:
        ValueError: `feedback` is `shared`, or `points` are given; layers then have no B of their own.
    """

    title = "direct Kolen-Pollack"
    learns = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.feedback == "shared" or self.points:
            raise ValueError("dkp learns a B for each layer, so it takes neither feedback='shared' nor points")
