"""What a network returns: one tensor, or logits with those of auxiliary heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def main_output(outputs: Any) -> Tensor:
    """The outputs (n, C) or (n, T, C) that predictions are made of, of whatever a network returns.

    That is a tensor, or the entry `logits` of a mapping or an object: the named tuples of GoogLeNet and
    Inception v3 in training, the outputs of Hugging Face.

    Raises:
        TypeError: anything else.
    """
    if isinstance(outputs, Tensor):
        return outputs
    logits = entries(outputs).get("logits")
    if isinstance(logits, Tensor):
        return logits
    raise TypeError(
        f"the network returns a {type(outputs).__name__}: a tensor is needed, or a mapping or an object whose "
        "`logits` are one; wrap the network in a module that returns its logits"
    )


def entries(outputs: Any) -> Mapping[str, Any]:
    """Its parts by name; a tensor and a plain tuple have none."""
    if isinstance(outputs, Mapping):
        return outputs
    if isinstance(outputs, tuple):  # `_fields` are those of a named one
        return dict(zip(getattr(outputs, "_fields", ()), outputs, strict=False))
    return getattr(outputs, "__dict__", {})
