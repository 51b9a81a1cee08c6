"""Access to a network's outputs: a single tensor, or main logits with auxiliary ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def main_output(outputs: Any) -> Tensor:
    """Outputs (n, C) or (n, T, C) from which predictions are made.

    They are the tensor that a network returns, or the entry `logits` of a mapping or an object, such as the named
    tuples of GoogLeNet and Inception v3 in training, and the outputs of Hugging Face.

    Raises:
        TypeError: the network returns anything else.
    """
    if isinstance(outputs, Tensor):
        return outputs
    logits = entries(outputs).get("logits")
    if isinstance(logits, Tensor):
        return logits
    raise TypeError(
        f"the network returns a {type(outputs).__name__}, but a tensor is needed, or a mapping or an object whose "
        "`logits` are a tensor; wrap the network in a module that returns its logits"
    )


def logits_of(outputs: Any) -> Tensor:
    """Main output as logits (n, C). A single logit z, (n, 1) or (n,), becomes the two logits (0, z)."""
    found = main_output(outputs)
    found = found[:, None] if found.dim() == 1 else found
    single = found.dim() == 2 and found.shape[1] == 1
    return torch.cat([torch.zeros_like(found), found], 1) if single else found


def entries(outputs: Any) -> Mapping[str, Any]:
    """Parts of a network's outputs by name; empty for a tensor or a plain tuple."""
    if isinstance(outputs, Mapping):
        return outputs
    if isinstance(outputs, tuple):  # only a named tuple has `_fields`
        return dict(zip(getattr(outputs, "_fields", ()), outputs, strict=False))
    return getattr(outputs, "__dict__", {})
