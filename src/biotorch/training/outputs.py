"""The loss of what a network returns, auxiliary heads included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from biotorch.models.outputs import entries, main_output

#: What the loss of an auxiliary head counts beside that of the main one (Szegedy et al. 2015, section 5).
AUXILIARY_WEIGHT = 0.3


def training_loss(loss: Callable[[Tensor, Tensor], Tensor], outputs: Any, labels: Tensor) -> Tensor:
    """The loss that is trained on: that of the main output, and `AUXILIARY_WEIGHT` times that of each auxiliary head.

    Auxiliary heads are the entries `aux_logits`, `aux_logits1` ... beside `logits`.

    Raises:
        TypeError: as `main_output`.
    """
    total = loss(main_output(outputs), labels)
    for name, value in entries(outputs).items():
        if name.startswith("aux_logits") and value is not None:
            total = total + AUXILIARY_WEIGHT * loss(value, labels)
    return total
