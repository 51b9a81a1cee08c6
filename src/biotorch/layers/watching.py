"""Counts of the gradients that reach parameters, and of the steps of the optimizers that hold them.

The hooks only count. Followers and learners read the counts later.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

#: Number of forward passes with a new gradient but no visible change, after which values are compared.
PATIENCE = 8


_Callable = TypeVar("_Callable", bound=Callable[..., Any])


def uncompiled(function: _Callable) -> _Callable:
    """Exclude a hook or another function that runs eagerly from torch.compile.

    `torch.compiler.disable` imports the compiler, which takes as long as importing torch, so it is called only after
    somebody else has loaded the compiler. A compiled graph that meets the function would trace this detour, too.
    """
    disabled: list[_Callable] = []

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not disabled:
            if "torch._dynamo" not in sys.modules:
                return function(*args, **kwargs)
            disabled.append(torch.compiler.disable(function))  # type: ignore[no-untyped-call]
        return disabled[0](*args, **kwargs)

    return call  # type: ignore[return-value]


class Listener(Protocol):
    """Interface of an object that is called at every gradient of a parameter."""

    def on_gradient(self) -> None: ...


class Watch:
    """Record of one parameter: gradients that reached it, and steps of the optimizers that hold it."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = weakref.ref(parameter)
        #: Number of gradients so far, and the parameter's version at the last one.
        self.gradients, self.version = 0, parameter._version
        #: Number of optimizer steps so far, and the parameter's version and the `weight_decay` after the last one.
        self.steps, self.stepped_version = 0, -1
        self.decay: float | None = None
        #: Optimizers known to hold the parameter, by id; `searched`: all optimizers were looked for; `in_step`: one of
        #: them is in its step.
        self._holders: dict[int, weakref.ref[Optimizer]] = {}
        self.searched = self.in_step = self._had_gradient = False
        self._begun_version = -1
        #: Whether to compare values, too, because compiled graphs raise the version of whatever they may rescale.
        self.by_contents = False
        self._sample: Tensor | None = None
        self.learners: weakref.WeakSet[Listener] = weakref.WeakSet()
        self._listens = False

    def listen(self) -> None:
        """Start to count gradients, unless the parameter is frozen and has none."""
        parameter = self.parameter()
        if not self._listens and parameter is not None and parameter.requires_grad and parameter.is_leaf:
            self._listens, hook = True, functools.partial(_count, weakref.ref(self))
            vars(hook)["__torch_unserializable__"] = True  # a copy in another process registers its own hook
            handle = parameter.register_hook(hook)  # type: ignore[no-untyped-call]
            weakref.finalize(self, handle.remove)

    def hold(self, optimizer: Optimizer) -> None:
        """Note that `optimizer` holds the parameter."""
        self._holders[id(optimizer)] = weakref.ref(optimizer)

    def release(self) -> None:
        """Forget the optimizers that hold the parameter, because they turned out not to be in use."""
        self._holders.clear()

    @property
    def is_held(self) -> bool:
        """Whether an existing optimizer is known to hold the parameter."""
        return any(holder() is not None for holder in self._holders.values())

    def begin_step(self, optimizer: Optimizer) -> None:
        """Note that an optimizer which holds the parameter begins its step."""
        parameter = self.parameter()
        self.hold(optimizer)
        if parameter is not None:
            self.in_step, self._begun_version = True, parameter._version
            self._had_gradient = parameter.grad is not None

    def end_step(self, counts: bool, decay: float | None) -> None:
        """Note the end of a step; it counts if the parameter had a gradient or has changed."""
        parameter, self.in_step = self.parameter(), False
        if parameter is None:
            return
        self.stepped_version = parameter._version
        moved = self._had_gradient or parameter.grad is not None or parameter._version != self._begun_version
        if counts and moved:
            self.steps += 1
            self.decay = decay

    @property
    def changes(self) -> tuple[int, int]:
        """A value that differs after every visible change of the parameter."""
        parameter = self.parameter()
        return self.steps, 0 if parameter is None else parameter._version

    def overlook(self, parameter: nn.Parameter) -> None:
        """Treat the present value of the parameter as unchanged."""
        self.version = parameter._version
        self._sample = sample(parameter) if self.by_contents else None

    def is_changed(self, parameter: nn.Parameter) -> bool:
        """Whether the parameter has visibly changed since the last gradient."""
        if parameter._version == self.version:
            return False
        return self._sample is None or differs(self._sample, parameter)


@uncompiled
def _count(watch: weakref.ref[Watch], gradient: Tensor) -> None:
    """Gradient hook, removed with its watch, which it holds by a weak reference."""
    found = watch()
    parameter = None if found is None else found.parameter()
    if found is not None and parameter is not None and not _paused:
        found.gradients += 1
        found.overlook(parameter)
        for learner in list(found.learners):
            learner.on_gradient()


#: Watches by the id of their parameter, for the hooks of optimizers.
_watches: weakref.WeakValueDictionary[int, Watch] = weakref.WeakValueDictionary()
_paused = False


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Do not track updates inside the `with` block, in which an experiment overwrites weights."""
    global _paused  # noqa: PLW0603
    before, _paused = _paused, True
    try:
        yield
    finally:
        _paused = before


def is_paused() -> bool:
    """Whether updates are not tracked at the moment, see `paused`."""
    return _paused


def watch(parameter: nn.Parameter) -> Watch:
    """The watch of a parameter, made if there is none; it exists as long as a reference to it."""
    found = _watches.get(id(parameter))
    if found is None or found.parameter() is not parameter:
        found = _watches[id(parameter)] = Watch(parameter)
    found.listen()
    return found


def sample(tensor: Tensor) -> Tensor:
    """Copy a tensor, or of a large one 4096 elements at random places."""
    flat = tensor.detach().reshape(-1)
    return flat.clone() if flat.numel() <= 4096 else flat[_places(flat.numel(), flat.device)]


@functools.lru_cache(maxsize=64)
def _places(n: int, device: torch.device) -> Tensor:
    return torch.randint(n, (4096,), generator=torch.Generator().manual_seed(n)).to(device)


def differs(earlier: Tensor, tensor: Tensor) -> bool:
    """Whether a tensor has changed since a sample of it was taken."""
    return not torch.equal(earlier.nan_to_num(), sample(tensor).nan_to_num())


def find_optimizers() -> None:
    """Note which parameters the existing optimizers hold.

    torch keeps no list of optimizers, and an optimizer that has not stepped yet is not known from its hooks.
    """
    for each in gc.get_objects():
        if issubclass(type(each), Optimizer):
            for found in filter(None, map(_watches.get, map(id, _parameters(each)))):
                found.hold(each)
    for found in list(_watches.values()):
        found.searched = True


def _parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    for group in getattr(optimizer, "param_groups", ()):
        yield from group["params"]


def _inner(optimizer: Optimizer) -> Iterator[Optimizer]:
    """The optimizers inside a wrapper (accumulation, Lookahead, SAM)."""
    for value in vars(optimizer).values():
        values = list(value.values()) if isinstance(value, Mapping) else value
        parts = values if isinstance(values, list | tuple | set) else [values]
        yield from (part for part in parts if isinstance(part, Optimizer))


@uncompiled
def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if _watches:
        for found in filter(None, map(_watches.get, map(id, _parameters(optimizer)))):
            found.begin_step(optimizer)


@uncompiled
def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    # A fused optimizer under a gradient scaler runs its step, and this hook, even if it found infinities and changed
    # nothing. The hook of a wrapper runs in addition to the hook of the optimizer inside, and also if the inner one
    # did not step. So parameters of the inner optimizer are counted by the inner optimizer's hook only.
    if not _watches:
        return
    found_inf = getattr(optimizer, "found_inf", None)
    skipped = found_inf is not None and bool(found_inf)
    inside = {id(parameter) for each in _inner(optimizer) for parameter in _parameters(each)}
    for group in optimizer.param_groups:
        for key in map(id, group["params"]):
            if (found := _watches.get(key)) is not None:
                found.end_step(not skipped and key not in inside, group.get("weight_decay"))


register_optimizer_step_pre_hook(_before_step)
register_optimizer_step_post_hook(_after_step)
