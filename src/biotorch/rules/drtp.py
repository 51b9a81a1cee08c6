"""Direct random target projection."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from biotorch.kernel.teaching import Targets
from biotorch.rules.dfa import DirectFeedbackAlignment
from biotorch.rules.registry import register


@register("drtp", transports="nothing")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DirectRandomTargetProjection(DirectFeedbackAlignment):
    """The targets go to every hidden layer by a fixed random B_i (Frenkel, Lefebvre & Bol 2021, equation 4).

    delta y_i = B_i y*, in the place of DFA's B_i (y* - y): for one-hot targets the error's sign is known before
    the output is, so a layer could learn before the forward pass ends. The output layer itself learns by e.

        y*   one-hot labels, or rows: `with biotorch.targets(y):` around the forward pass
        c    what an example counts in the loss (its mean: 1 / n)

    As a gradient, what is projected is -c y*. It does not depend on e, so it takes neither the factor of a loss
    scaler nor that of accumulation from it: `biotorch.targets(y, scale=c)` gives it, and runs from a configuration
    do so by themselves.
    """

    experimental = True

    def signal(self, error: Tensor, targets: Targets) -> Tensor:
        return targets.rows(error) * -targets.weight(error)
