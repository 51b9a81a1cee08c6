"""The tensors that a layer keeps for B: their names, made of that of W, and what rules see of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def as_state(tensors: Mapping[str, Tensor]) -> Any:
    """What rules take for the state of B: a tensor, tensors by name, or None."""
    return tensors.get("", tensors or None)


def feedback_name(parameter: str, part: str = "") -> str:
    """Where a layer keeps the B of a parameter: `feedback` of `weight`, `in_proj_feedback` of `in_proj_weight`."""
    return _named_after(parameter, f"feedback_{part}" if part else "feedback")


def norm_name(parameter: str) -> str:
    """Where it keeps the norm that W started with, for `constrain_weights`."""
    return _named_after(parameter, "initial_norm")


def _named_after(parameter: str, what: str) -> str:
    name = parameter.replace(".", "_")
    return name.replace("weight", what) if "weight" in name else f"{name}_{what}"


def is_feedback(name: str) -> bool:
    """Whether an entry of a state_dict belongs to a layer's feedback, rather than to the network."""
    last = name.rpartition(".")[2]
    return any(f"_{own}_" in f"_{last}_" for own in ("feedback", "initial_norm"))
