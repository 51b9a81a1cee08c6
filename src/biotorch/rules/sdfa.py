"""Error-sign direct feedback alignment."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from biotorch.kernel.teaching import Targets
from biotorch.rules.dfa import DirectFeedbackAlignment
from biotorch.rules.registry import register


@register("sdfa", transports="nothing")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ErrorSignDirectFeedbackAlignment(DirectFeedbackAlignment):
    """DFA of the error's sign (Frenkel, Lefebvre & Bol 2021, section 2).

    delta y_i = B_i sign(e): what remains of DFA when only the direction of each output's error is known.

        c   what an example counts in the loss (its mean: 1 / n)

    What is projected is c sign(e). A sign has no size, so the factor of a loss scaler or of accumulation is lost
    in it: `biotorch.targets(y, scale=c)` gives it back, and runs from a configuration do so by themselves. sign(0) = 0.
    """

    experimental = True

    def signal(self, error: Tensor, targets: Targets) -> Tensor:
        return error.sign() * targets.weight(error)
