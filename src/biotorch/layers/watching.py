"""What happens to parameters: gradients that reach them, and steps of the optimizers that hold them.

Nothing is done when it happens: hooks only count, and whoever is interested looks at the counts later.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from biotorch.kernel.functions import uncompiled

#: Forward passes with a gradient and without a visible change after which contents are compared.
PATIENCE = 8


class Listener(Protocol):
    """Whoever wants to know of the gradients of a parameter."""

    def on_gradient(self) -> None: ...


class Watch:
    """What has happened to a parameter: gradients that reached it, steps of the optimizers that hold it."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = weakref.ref(parameter)
        #: Gradients that backward passes have handed it, and its version when the last one came.
        self.gradients, self.version = 0, parameter._version
        #: Steps that optimizers have made on it; the `weight_decay` of the last, and the version that it left.
        self.steps, self.stepped_version = 0, -1
        self.decay: float | None = None
        #: The optimizers that are known to hold it, by id; whether all were looked for; whether one is in its step.
        self._holders: dict[int, weakref.ref[Optimizer]] = {}
        self.searched = self.in_step = self._had_gradient = False
        self._begun_version = -1
        #: Whether contents have to tell changes: compiled graphs raise the version of what they may rescale.
        self.by_contents = False
        self._sample: Tensor | None = None
        self.learners: weakref.WeakSet[Listener] = weakref.WeakSet()
        self._listens = False

    def listen(self) -> None:
        """Count gradients, from when on there are any: a frozen parameter has none."""
        parameter = self.parameter()
        if not self._listens and parameter is not None and parameter.requires_grad and parameter.is_leaf:
            self._listens, hook = True, functools.partial(_count, weakref.ref(self))
            vars(hook)["__torch_unserializable__"] = True  # a copy in another process has its own
            handle = parameter.register_hook(hook)  # type: ignore[no-untyped-call]
            weakref.finalize(self, handle.remove)

    def hold(self, optimizer: Optimizer) -> None:
        """Note that an optimizer holds it."""
        self._holders[id(optimizer)] = weakref.ref(optimizer)

    def release(self) -> None:
        """Forget who holds it: the optimizers are not in use."""
        self._holders.clear()

    @property
    def is_held(self) -> bool:
        """Whether a living optimizer holds it, as far as is known."""
        return any(holder() is not None for holder in self._holders.values())

    def begin_step(self, optimizer: Optimizer) -> None:
        """An optimizer that holds it is going to step."""
        parameter = self.parameter()
        self.hold(optimizer)
        if parameter is not None:
            self.in_step, self._begun_version = True, parameter._version
            self._had_gradient = parameter.grad is not None

    def end_step(self, counts: bool, decay: float | None) -> None:
        """It has stepped: that counts if it had a gradient, or has changed."""
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
        """Becomes another with every change that can be seen."""
        parameter = self.parameter()
        return self.steps, 0 if parameter is None else parameter._version

    def overlook(self, parameter: nn.Parameter) -> None:
        """Take the parameter as it is for unchanged."""
        self.version = parameter._version
        self._sample = sample(parameter) if self.by_contents else None

    def is_changed(self, parameter: nn.Parameter) -> bool:
        """Whether it has changed since the last gradient, as far as can be seen."""
        if parameter._version == self.version:
            return False
        return self._sample is None or differs(self._sample, parameter)


@uncompiled
def _count(watch: weakref.ref[Watch], gradient: Tensor) -> None:
    """Hook of a gradient. It keeps no watch alive, and goes with it."""
    found = watch()
    parameter = None if found is None else found.parameter()
    if found is not None and parameter is not None and not _paused:
        found.gradients += 1
        found.overlook(parameter)
        for learner in list(found.learners):
            learner.on_gradient()


#: The watched parameters by id, for the hooks of optimizers.
_watches: weakref.WeakValueDictionary[int, Watch] = weakref.WeakValueDictionary()
_paused = False


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Inside, weights may be overwritten for an experiment: that is no update, and nobody looks for one."""
    global _paused  # noqa: PLW0603
    before, _paused = _paused, True
    try:
        yield
    finally:
        _paused = before


def is_paused() -> bool:
    """Whether an experiment overwrites weights now."""
    return _paused


def watch(parameter: nn.Parameter) -> Watch:
    """The watch of a parameter, which lives as long as somebody holds it."""
    found = _watches.get(id(parameter))
    if found is None or found.parameter() is not parameter:
        found = _watches[id(parameter)] = Watch(parameter)
    found.listen()
    return found


def sample(tensor: Tensor) -> Tensor:
    """A copy, of large tensors some thousand elements of all rows and columns alike."""
    flat = tensor.detach().reshape(-1)
    return flat.clone() if flat.numel() <= 4096 else flat[_places(flat.numel(), flat.device)]


@functools.lru_cache(maxsize=64)
def _places(n: int, device: torch.device) -> Tensor:
    return torch.randint(n, (4096,), generator=torch.Generator().manual_seed(n)).to(device)


def differs(earlier: Tensor, tensor: Tensor) -> bool:
    """Whether a tensor has changed since a sample of it was taken."""
    return not torch.equal(earlier.nan_to_num(), sample(tensor).nan_to_num())


def find_optimizers() -> None:
    """Note what the living optimizers hold; torch keeps no list of them, and some step for the first time after SAM."""
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
    """The optimizers that a wrapper (accumulation, Lookahead, SAM) keeps."""
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
    # A fused optimizer under a gradient scaler runs its step, and this hook, even where it found infinities and
    # changed nothing. A wrapper's own hook comes beside that of the optimizer inside, and also where it has not
    # stepped that one at all: what the inner one holds is marked by the inner one.
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
