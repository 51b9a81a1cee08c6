"""Names of the tensors that a layer keeps for B, derived from the name of W, and the form in which rules get them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def as_state(tensors: Mapping[str, Tensor]) -> Any:
    """The state of B in the form that rules take: a tensor, a mapping of names to tensors, or None."""
    return tensors.get("", tensors or None)


def feedback_name(parameter: str, part: str = "") -> str:
    """Name of the tensor B of a parameter: `feedback` for `weight`, `in_proj_feedback` for `in_proj_weight`."""
    return _named_after(parameter, f"feedback_{part}" if part else "feedback")


def norm_name(parameter: str) -> str:
    """Name of the buffer with the norm that W started with, for `constrain_weights`."""
    return _named_after(parameter, "initial_norm")


def live_name(parameter: str) -> str:
    """Name of the buffer that says which entries of B work, for the option `dead`."""
    return _named_after(parameter, "live_feedback")


def noisy_name(parameter: str) -> str:
    """Name of the buffer with the seed and the number of draws of B's noise, for the option `noise`."""
    return _named_after(parameter, "noisy_feedback")


#: Buffers of the output layer for a matrix that all layers share: the matrix, its live entries and its noise.
SHARED_BUFFERS = ("shared_feedback", "shared_live_feedback", "shared_noisy_feedback")


def _named_after(parameter: str, what: str) -> str:
    name = parameter.replace(".", "_")
    return name.replace("weight", what) if "weight" in name else f"{name}_{what}"


def is_feedback(name: str) -> bool:
    """Whether an entry of a state_dict belongs to a layer's feedback and not to the network itself.

    Examples:
        >>> names = biotorch.convert(nn.Linear(4, 3), "fa").state_dict()
        >>> [name for name in names if biotorch.layers.is_feedback(name)]
        ['feedback']
    """
    last = name.rpartition(".")[2]
    return any(f"_{own}_" in f"_{last}_" for own in ("feedback", "initial_norm"))
