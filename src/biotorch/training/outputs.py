"""What a network returns: one tensor, or logits with those of auxiliary heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

#: What the loss of an auxiliary head counts beside that of the main one (Szegedy et al. 2015, section 5).
AUXILIARY_WEIGHT = 0.3


def main_output(outputs: Any) -> Tensor:
    """The outputs (n, C) or (n, T, C) that predictions are made of, of whatever a network returns.

    That is a tensor, or the entry `logits` of a mapping or an object: the named tuples of GoogLeNet and
    Inception v3 in training, the outputs of Hugging Face.

    Raises:
        TypeError: anything else.
    """
    if isinstance(outputs, Tensor):
        return outputs
    logits = _entries(outputs).get("logits")
    if isinstance(logits, Tensor):
        return logits
    raise TypeError(
        f"the network returns a {type(outputs).__name__}: a tensor is needed, or a mapping or an object whose "
        "`logits` are one; wrap the network in a module that returns its logits"
    )


def training_loss(loss: Callable[[Tensor, Tensor], Tensor], outputs: Any, labels: Tensor) -> Tensor:
    """The loss that is trained on: that of the main output, and `AUXILIARY_WEIGHT` times that of each auxiliary head.

    Auxiliary heads are the entries `aux_logits`, `aux_logits1` ... beside `logits`.

    Raises:
        TypeError: as `main_output`.
    """
    total = loss(main_output(outputs), labels)
    for name, value in _entries(outputs).items():
        if name.startswith("aux_logits") and value is not None:
            total = total + AUXILIARY_WEIGHT * loss(value, labels)
    return total


def _entries(outputs: Any) -> Mapping[str, Any]:
    """Its parts by name; a tensor and a plain tuple have none."""
    if isinstance(outputs, Mapping):
        return outputs
    if isinstance(outputs, tuple):  # `_fields` are those of a named one
        return dict(zip(getattr(outputs, "_fields", ()), outputs, strict=False))
    return getattr(outputs, "__dict__", {})
