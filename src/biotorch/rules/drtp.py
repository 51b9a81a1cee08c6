"""Direct random target projection (DRTP)."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from biotorch.kernel.teaching import Targets
from biotorch.rules.dfa import DirectFeedbackAlignment
from biotorch.rules.registry import register


@register("drtp", transports="nothing")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DirectRandomTargetProjection(DirectFeedbackAlignment):
    """The targets go to every hidden layer through a fixed random B_i (Frenkel, Lefebvre & Bol 2021, equation 4).

    delta y_i = B_i y*, in the place of DFA's B_i (y* - y). For one-hot targets the sign of the error is known before
    the output, so a layer could learn before the forward pass ends. The output layer itself learns from e.

        y*   one-hot labels or rows, given by `with biotorch.targets(y):` around the forward pass
        c    weight of one example in the loss (1 / n if the loss is a mean)

    In a regression y* is the float target, which is the error of an output of zero: its sign is right only as long as
    the output is smaller than the target. The paper has no such case.

    As a gradient, B_i projects -c y*. This does not depend on e, so a loss scaler or gradient accumulation does not
    scale it. Give the weight with `biotorch.targets(y, scale=c)`; runs from a configuration do this on their own.
    """

    title = "direct random target projection"
    experimental = True

    def signal(self, error: Tensor, targets: Targets) -> Tensor:
        return targets.rows(error) * -targets.weight(error)
