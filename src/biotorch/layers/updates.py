"""What goes with an optimizer step: a user's plain `loss.backward(); optimizer.step()` is enough.

torch calls one hook before and one after every optimizer's step; they visit the layers whose rule asked for it and
whose weight that optimizer holds. Where no rule asked, they return at once.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor, distributed
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from biotorch.layers.descent import is_twin

if TYPE_CHECKING:
    from biotorch.layers.connection import Connection


class Begun(NamedTuple):
    """What is known of a weight before an optimizer steps on it."""

    #: What it descends by, a copy; None where there is none yet.
    gradient: Tensor | None
    #: Of which tensor.
    source: Tensor | None
    #: Names of what the optimizer keeps for it.
    state: frozenset[str]


class Step:
    """One optimizer step: on which parameters, and with what rate and decay."""

    def __init__(self, optimizer: torch.optim.Optimizer, settled: bool = True) -> None:
        self.optimizer = optimizer
        #: Whether gradients are what they are to be: neither a closure nor a fused unscaling changes them in the step.
        self.settled = settled
        #: A wrapper (accumulation, Lookahead, SAM) fires the hooks for its own step beside that of the optimizer
        #: inside, and also where it has not stepped that one at all: rules have their update with the inner one.
        self.wraps = any(_holds_optimizer(value) for value in vars(optimizer).values())
        self.groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        self._updated: set[int] = set()

    def concerns(self, layer: Updated) -> bool:
        """Whether the optimizer holds a weight of the layer: the others may be another's."""
        return any(id(layer.get_parameter(name)) in self.groups for name in layer.weight_names)

    def held(self, connections: Iterable[Connection]) -> list[Connection]:
        """Those of which the optimizer holds W."""
        return [each for each in connections if id(each.trained) in self.groups]

    def first_to_update(self, feedback: Tensor) -> bool:
        """Whether this B has not had its update in this step; it has had it afterwards."""
        known = id(feedback) in self._updated
        self._updated.add(id(feedback))
        return not known

    def begin(self, connection: Connection) -> Begun:
        """What has to be known before the step."""
        gradient, state = connection.trained.grad, self.optimizer.state.get(connection.trained, {})
        settled = self.settled and gradient is not None
        return Begun(
            gradient.clone() if settled and gradient is not None else None,
            gradient,
            frozenset(key for key, value in state.items() if value is not None),
        )

    def continues(self, connection: Connection, kept: Mapping[str, Any], begun: Begun) -> bool:
        """Whether what is kept of earlier steps of this B is of this optimizer; it is from now on.

        After loading or copying it is where the optimizer has brought such a state for W, too.
        """
        owners = _owners.setdefault(connection.layer, {})
        owner = owners.get(connection.parameter)
        owners[connection.parameter] = weakref.ref(self.optimizer)
        if owner is None:
            return begun.state == {key for key, value in kept.items() if value is not None}
        return owner() is self.optimizer

    def rate(self, parameter: torch.nn.Parameter) -> float:
        """The learning rate of a parameter."""
        return float(self.groups[id(parameter)]["lr"])

    def decay(self, parameter: torch.nn.Parameter) -> float:
        """The `weight_decay` of a parameter, 0 where the optimizer has none."""
        return float(self.groups[id(parameter)].get("weight_decay") or 0)


class Updated(Protocol):
    """A layer that changes with training beyond its gradients."""

    weight_names: Sequence[str]

    def get_parameter(self, target: str) -> torch.nn.Parameter: ...

    def before_update(self, step: Step) -> None: ...

    def after_update(self, step: Step) -> None: ...


#: In order of registration: processes of one training visit their layers in the same order.
_watched: weakref.WeakKeyDictionary[Updated, None] = weakref.WeakKeyDictionary()
#: By layer and parameter, the optimizer to which what is kept of the steps of B belongs; none after loading or copying.
_owners: weakref.WeakKeyDictionary[Updated, dict[str, weakref.ref[torch.optim.Optimizer]]] = weakref.WeakKeyDictionary()
#: Optimizers that tell of the beginning of a step.
_followed: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
_lock = threading.Lock()  # one thread may copy a model while another steps


def watch(layer: Updated, wanted: bool) -> None:
    """Visit `layer` before and after an optimizer steps on one of its weights, or no longer."""
    with _lock:
        if wanted:
            _watched[layer] = None
        else:
            _watched.pop(layer, None)


def disown(layer: Updated) -> None:
    """What is kept of the steps of its B goes on with whichever optimizer comes next."""
    _owners.pop(layer, None)


def _holds_optimizer(value: Any) -> bool:
    if isinstance(value, Mapping):
        value = list(value.values())
    parts = value if isinstance(value, list | tuple | set) else [value]
    return any(isinstance(part, torch.optim.Optimizer) for part in parts)


def over_processes(feedback: Tensor, summed: bool) -> Tensor | None:
    """The gradient collected for a B, taken from it, as DDP gives that of W: averaged, or summed, over processes.

    None where nothing was collected, or it is not finite (of a step that a loss scaler skipped).
    """
    gradient, feedback.grad = feedback.grad, None
    world = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
    if world > 1:
        gradient = torch.zeros_like(feedback) if gradient is None else gradient.contiguous()
        distributed.all_reduce(gradient)
        gradient = gradient if summed else gradient / world
    return None if gradient is None or not gradient.isfinite().all() else gradient


def _concerned(step: Step) -> list[Updated]:
    with _lock:
        layers = list(_watched)
    return [layer for layer in layers if step.concerns(layer)]


def _uncompiled(hook: Callable[..., None]) -> Callable[..., None]:
    """Compiled steps run it as it is: what it does depends on layers that no compiler sees."""
    found: Callable[..., None] = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]
    return found


def _before_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    # An optimizer's own hooks come after this one and may change gradients (Batch Manhattan, clipping): the last of
    # them sees what the optimizer sees.
    if _watched and not is_twin(optimizer) and optimizer not in _followed:
        _followed.add(optimizer)
        optimizer.register_step_pre_hook(_uncompiled(_begin_step))


def _begin_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    if not _watched:
        return
    closure = any(each is not None for each in [*args[1:], *kwargs.values()])
    step = Step(optimizer, settled=not closure and getattr(optimizer, "grad_scale", None) is None)
    if not step.wraps:
        for layer in _concerned(step):
            layer.before_update(step)


def _after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    if not _watched or is_twin(optimizer):
        return
    # A fused optimizer under a gradient scaler runs its step, and this hook, even where it found
    # infinities and changed nothing.
    found_inf = getattr(optimizer, "found_inf", None)
    if found_inf is not None and bool(found_inf):
        return
    step = Step(optimizer)
    for layer in _concerned(step):
        layer.after_update(step)


register_optimizer_step_pre_hook(_uncompiled(_before_step))
register_optimizer_step_post_hook(_uncompiled(_after_step))
