"""Error-sign direct feedback alignment (sDFA)."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from biotorch.kernel.teaching import Targets
from biotorch.rules.dfa import DirectFeedbackAlignment
from biotorch.rules.registry import register


@register("sdfa", transports="nothing")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ErrorSignDirectFeedbackAlignment(DirectFeedbackAlignment):
    """DFA with the sign of the error (Frenkel, Lefebvre & Bol 2021, section 2).

    delta y_i = B_i sign(e), which is DFA when only the direction of each output's error is known. sign(0) = 0. It needs
    no classes: in a regression e is the error of each target.

        c   weight of one example in the loss (1 / n if the loss is a mean)

    B_i projects c sign(e). A sign has no size, so a loss scaler or gradient accumulation does not scale it.
    Give the weight with `biotorch.targets(y, scale=c)`; runs from a configuration do this on their own.
    """

    title = "error-sign direct feedback alignment"
    experimental = True

    def signal(self, error: Tensor, targets: Targets) -> Tensor:
        return error.sign() * targets.weight(error)
