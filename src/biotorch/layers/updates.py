"""What follows an optimizer step: a user's plain `loss.backward(); optimizer.step()` is enough.

torch calls one hook after every optimizer's step; it visits the layers whose rule asked for it and
whose weight that optimizer holds. Where no rule asked, it returns at once.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Container, Sequence
from typing import Any, Protocol

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook


class Updated(Protocol):
    """A layer that changes with training beyond its gradients."""

    weight_names: Sequence[str]

    def get_parameter(self, target: str) -> torch.nn.Parameter: ...

    def after_update(self, redraw: bool, stepped: Container[int]) -> None: ...


_watched: weakref.WeakSet[Updated] = weakref.WeakSet()
_lock = threading.Lock()  # one thread may copy a model while another steps


def watch(layer: Updated, wanted: bool) -> None:
    """Call `layer.after_update` after the optimizer steps on one of its weights, or no longer."""
    with _lock:
        if wanted:
            _watched.add(layer)
        else:
            _watched.discard(layer)


def _after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    if not _watched:
        return
    # A fused optimizer under a gradient scaler runs its step, and this hook, even where it found
    # infinities and changed nothing.
    found_inf = getattr(optimizer, "found_inf", None)
    if found_inf is not None and bool(found_inf):
        return
    # A wrapper (accumulation, Lookahead, SAM) fires the hook for its own step beside that of the
    # optimizer inside, and also where it has not stepped that one at all.
    wraps = any(isinstance(value, torch.optim.Optimizer) for value in vars(optimizer).values())
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    with _lock:
        layers = list(_watched)
    for layer in layers:
        if any(id(layer.get_parameter(name)) in stepped for name in layer.weight_names):
            layer.after_update(not wraps, stepped)


register_optimizer_step_post_hook(_after_step)
