"""Steps of B by an optimizer like that of W, for rules under which B descends by a gradient as W does.

B is the parameter of another optimizer of W's type and settings, and has momenta of its own. Whatever such an optimizer
makes of gradients, rates and decay, W and B have the same of it, and nothing of W gets into B.
"""

from __future__ import annotations

import inspect
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

#: By the optimizer of W, the one of its B: it gets one B at a time.
_twins: weakref.WeakKeyDictionary[Optimizer, Optimizer] = weakref.WeakKeyDictionary()
#: The twins themselves, whose own steps concern no layer.
_all: weakref.WeakSet[Optimizer] = weakref.WeakSet()


def is_twin(optimizer: Optimizer) -> bool:
    """Whether it steps feedback weights."""
    return optimizer in _all


def descend(
    optimizer: Optimizer, settings: dict[str, Any], feedback: Tensor, gradient: Tensor, state: dict[str, Any]
) -> dict[str, Any]:
    """Step `feedback` in place down `gradient`, and return the state of the optimizer for it.

    Args:
        optimizer: that of W.
        settings: those of its parameter group, with the rate of this step.
        state: what the last call returned; empty at first.

    Raises:
        RuntimeError: an optimizer of that type cannot be built, or evaluates the loss itself.
    """
    parameter = nn.Parameter(feedback)  # the same memory
    parameter.grad = gradient.to(feedback.dtype, copy=True)  # some optimizers write into it
    group = {**settings, "params": [parameter]}
    twin = _twins.get(optimizer)
    if twin is None or not state:  # a new one, since some begin with a state
        twin = _twins[optimizer] = _like(optimizer, group)
        _all.add(twin)
    twin.param_groups = [group]
    if state:
        twin.state.clear()
        twin.state[parameter] = dict(state)
    twin.step()
    return dict(twin.state[parameter])


def to_save(key: str, value: Any) -> Tensor:
    """A part of such a state, as a tensor for a `state_dict`. Raises TypeError for what is none and no number."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, bool | int | float):
        return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
    raise TypeError(
        f"the optimizer keeps {type(value).__name__} {key!r} for B: a state_dict holds tensors and numbers alone"
    )


def from_saved(key: str, value: Tensor, feedback: Tensor) -> Tensor:
    """A part of a state from a `state_dict`, of type and device of B, as torch does it for the parameter's own."""
    if key == "step":  # stays where, and as precise as, the optimizer had it
        return value.clone()
    return value.to(feedback.device, feedback.dtype if value.is_floating_point() else None, copy=True)


def _like(optimizer: Optimizer, group: dict[str, Any]) -> Optimizer:
    kind = type(optimizer)
    closure = inspect.signature(kind.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise RuntimeError(
            f"{kind.__name__} evaluates the loss itself instead of taking a gradient, so that B cannot step as W does: "
            "use another optimizer, or another rule"
        )
    accepted = inspect.signature(kind).parameters
    arguments = {name: value for name, value in optimizer.defaults.items() if name in accepted}
    try:
        return kind([group], **arguments)
    except TypeError as error:
        raise RuntimeError(
            f"B steps by an optimizer like that of W, and another {kind.__name__} cannot be built of its settings "
            f"({error}): give its constructor defaults, or use another optimizer"
        ) from error
