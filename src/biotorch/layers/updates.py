"""What follows an update of W, and whether B learns: a user's plain `loss.backward(); optimizer.step()` is enough.

An update is a change of W after a backward pass that gave it a gradient. Nothing is done when it happens: optimizers
only leave a mark, which is settled at the next use of B. Where an optimizer that holds W has stepped, its steps count
and nothing else does (neither a perturbation by SAM nor the trial points of a line search); elsewhere the change itself
counts, as the version counter of the parameter shows it.
"""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from biotorch.autograd import uncompiled

if TYPE_CHECKING:
    from biotorch.layers.connection import Connection

#: Training forwards with a gradient and without a visible update after which contents are compared.
_PATIENCE = 8


class Watch:
    """What has happened to a parameter: gradients that reached it, steps of the optimizers that hold it."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = weakref.ref(parameter)
        #: Gradients that backward passes have handed it, and its version when the last one came.
        self.gradients, self.version = 0, parameter._version
        #: Steps that optimizers have made on it, and the `weight_decay` of the last.
        self.steps = 0
        self.decay: float | None = None
        #: Whether an optimizer is known to hold it, and whether one was looked for; whether one is in its step.
        self.held, self.searched, self.in_step = False, False, False
        #: Whether contents have to tell changes: compiled graphs raise the version of what they may rescale.
        self.by_contents = False
        self._sample: Tensor | None = None
        #: Whoever wants to know of gradients, too.
        self.learner: weakref.ref[Learner] | None = None
        self._hooked = False

    def listen(self) -> None:
        """Count gradients, from when on there are any: a frozen parameter has none."""
        parameter = self.parameter()
        if not self._hooked and parameter is not None and parameter.requires_grad and parameter.is_leaf:
            self._hooked = True
            parameter.register_hook(self._on_gradient)  # type: ignore[no-untyped-call]

    @property
    def changes(self) -> tuple[int, int]:
        """Becomes another with every change that can be seen."""
        parameter = self.parameter()
        return self.steps, 0 if parameter is None else parameter._version

    def overlook(self, parameter: nn.Parameter) -> None:
        """Take the parameter as it is for unchanged."""
        self.version = parameter._version
        self._sample = _sample(parameter) if self.by_contents else None

    def is_changed(self, parameter: nn.Parameter) -> bool:
        """Whether it has changed since the last gradient, as far as can be seen."""
        if parameter._version == self.version:
            return False
        return self._sample is None or _differs(self._sample, parameter)

    def _on_gradient(self, gradient: Tensor) -> None:
        parameter, learner = self.parameter(), None if self.learner is None else self.learner()
        self.gradients += 1
        if parameter is not None:
            self.overlook(parameter)
        if learner is not None:
            learner.on_gradient()


#: The watched parameters by id, for the hooks of optimizers.
_watches: weakref.WeakValueDictionary[int, Watch] = weakref.WeakValueDictionary()
#: By key, for the operator that stands for `settle` in compiled graphs.
_followers: weakref.WeakValueDictionary[int, Follower] = weakref.WeakValueDictionary()
_lock = threading.RLock()
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


def watch(parameter: nn.Parameter) -> Watch:
    """The watch of a parameter, which lives as long as somebody holds it."""
    found = _watches.get(id(parameter))
    if found is None or found.parameter() is not parameter:
        found = _watches[id(parameter)] = Watch(parameter)
    found.listen()
    return found


class Follower:
    """Settles what follows the updates of one W: its norm under `constrain_weights`, a B that the rule changes."""

    def __init__(self, connection: Connection) -> None:
        self._connection = weakref.ref(connection)
        #: An update that `biotorch.updated` tells of; a change that is none.
        self.told, self.overlook = False, False
        self._busy = False
        self.key = id(self)
        _followers[self.key] = self
        self.forget()

    def forget(self) -> None:
        """What has happened to W until now is settled, or is no update."""
        connection = self._connection()
        assert connection is not None
        self.told, self._silent = False, 0
        self._trials = set[int]()
        if not connection.is_computed:
            self._watch = watch(connection.trained)
            self._watch.by_contents |= connection.layer.rule.constrain_weights
            self._gradients, self._steps = self._watch.gradients, self._watch.steps

    def settle(self, training: bool = False, followed: Sequence[Tensor] | None = None) -> Tensor | None:
        """Do what follows an update, if there was one since the last call.

        Args:
            training: a training forward begins: also make sure that no update goes unseen.
            followed: see `Connection.follow`, whose result is returned if there was an update.

        Raises:
            RuntimeError: W changes in a way that cannot be seen.
        """
        connection = self._connection()
        if connection is None or connection.is_computed or _paused or self._busy:
            return None
        with _lock:
            if self._is_updated(connection.trained):
                self._busy = True  # what follows looks at B, too
                try:
                    factor = connection.follow(followed)
                finally:
                    self._busy = False
                self.forget()
                return factor
            if training:
                self._require_visible(connection)
            return None

    def _is_updated(self, parameter: nn.Parameter) -> bool:
        if self.told:
            return True
        if self._watch.parameter() is not parameter:
            self.forget()  # another parameter has taken its place
        self._watch.listen()
        if self.overlook:
            self.overlook = False
            self._watch.overlook(parameter)
        if self._watch.gradients == self._gradients:
            return False
        if self._watch.steps != self._steps:
            return True
        if self._watch.in_step or not self._watch.is_changed(parameter):
            return False
        if self._watch.steps == 0 and _is_held(self._watch):
            # A perturbation before the first step of an optimizer, as SAM's; or one that is not in use, after a while.
            self._trials.add(self._watch.gradients)
            self._watch.held = len(self._trials) < 3
        return not self._watch.held

    def _require_visible(self, connection: Connection) -> None:
        """Compare contents now and then, while gradients come and no change is seen."""
        if self._watch.gradients == self._gradients or connection.trained._version != self._watch.version:
            return
        self._silent += 1
        if self._silent == 1:
            self._sample = _sample(connection.trained)
        elif self._silent == _PATIENCE:
            self._silent = 0
            if _differs(self._sample, connection.trained):
                raise RuntimeError(
                    f"{connection.name}: its weight changes in a way that cannot be seen (through .data, a flat "
                    f"buffer, a sharded parameter), and rule {connection.layer.rule.name!r} has to follow: call "
                    "biotorch.updated(model) once after every optimizer step"
                )


class Learner:
    """Makes sure that a B which gets gradients learns: that whoever steps on W steps on B, too."""

    def __init__(self, connection: Connection) -> None:
        self._connection = weakref.ref(connection)
        self._weight: Watch | None = None
        self._feedback: list[Watch] = []
        self._seen: list[tuple[int, int]] = []
        self._advised = False
        self.look()

    def on_gradient(self) -> None:
        """In compiled graphs there is no look at the forward: look at the second gradient without one."""
        self._unlooked += 1
        if self._unlooked > 1:
            self.look()

    def look(self) -> None:
        """Compare what has changed since the last call, at the beginning of a training forward.

        Raises:
            RuntimeError: W was updated twice, and B, which had gradients, was not.
        """
        connection = self._connection()
        if connection is None or connection.is_computed or _paused:
            return
        connection.freeze_with_weight()
        trained, learned = connection.trained, connection.learned
        parameters = [trained, *learned]
        if self._weight is None or any(
            each.parameter() is not parameter
            for each, parameter in zip([self._weight, *self._feedback], parameters, strict=True)
        ):
            self._weight, *self._feedback = map(watch, parameters)
            self._seen, self._gradients, self._idle = [], 0, 0
        for each in self._feedback:
            each.learner = weakref.ref(self)
            each.listen()
        self._unlooked = 0
        seen, self._seen = self._seen, [each.changes for each in (self._weight, *self._feedback)]
        gradients, self._gradients = self._gradients, sum(each.gradients for each in self._feedback)
        if gradients == self._gradients or not seen or self._seen == seen:
            return
        if not self._advised and self._weight.steps > 0:  # whoever updates by hand knows what it does
            self._advised = True
            connection.layer.rule.check_decay(connection.name, self._weight.decay)
        if self._seen[1:] != seen[1:]:
            self._idle = 0
        else:
            self._idle += 1
            self._require_learning(connection, parameters)

    def _require_learning(self, connection: Connection, parameters: list[nn.Parameter]) -> None:
        if self._idle == 1:
            self._samples = [_sample(each) for each in parameters]
            return
        weight, *feedback = (_differs(sample, each) for sample, each in zip(self._samples, parameters, strict=True))
        if weight and not any(feedback):
            _find_optimizers()
            if not any(each.held for each in self._feedback):  # held: its optimizer steps more rarely
                raise RuntimeError(
                    f"{connection.name}: W learns and its B does not: rule {connection.layer.rule.name!r} gives B "
                    "gradients, and no optimizer holds it. Build the optimizer after `convert`, of all parameters, or "
                    "give it a group for biotorch.feedback_parameters(model). A B that is to stay is frozen: "
                    "requires_grad_(False)"
                )


def _sample(tensor: Tensor) -> Tensor:
    """Some thousand elements, evenly spread."""
    flat = tensor.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // 4096)].clone()


def _differs(sample: Tensor, tensor: Tensor) -> bool:
    now = _sample(tensor)
    return not torch.equal(sample.nan_to_num(), now.nan_to_num())


def _is_held(watch: Watch) -> bool:
    """Whether an optimizer holds a parameter that none has stepped on yet."""
    if not watch.held and not watch.searched:
        _find_optimizers()
    return watch.held


def _find_optimizers() -> None:
    """Mark what the living optimizers hold; torch keeps no list of them, and some step for the first time after SAM."""
    for each in gc.get_objects():
        if issubclass(type(each), Optimizer):
            for held in map(_watches.get, map(id, _parameters(each))):
                if held is not None:
                    held.held = True
    for each in list(_watches.values()):
        each.searched = True


def _parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    for group in getattr(optimizer, "param_groups", ()):
        yield from group["params"]


def _inner(optimizer: Optimizer) -> Iterator[Optimizer]:
    """The optimizers that a wrapper (accumulation, Lookahead, SAM) keeps."""
    for value in vars(optimizer).values():
        values = list(value.values()) if isinstance(value, Mapping) else value
        yield from (
            part
            for part in (values if isinstance(values, list | tuple | set) else [values])
            if isinstance(part, Optimizer)
        )


@uncompiled
def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if _watches:
        for parameter in _parameters(optimizer):
            if (found := _watches.get(id(parameter))) is not None:
                found.held = found.in_step = True


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
        for parameter in group["params"]:
            found = _watches.get(id(parameter))
            if found is not None:
                found.in_step = False
                if not skipped and id(parameter) not in inside:
                    found.steps += 1
                    found.decay = group.get("weight_decay")


register_optimizer_step_pre_hook(_before_step)
register_optimizer_step_post_hook(_after_step)


@torch.library.custom_op("biotorch::settle", mutates_args=("followed", "factor"))
def settle_compiled(followed: Sequence[Tensor], factor: Tensor, weight: Tensor, key: int, training: bool) -> None:
    """`Follower.settle` as an operator, which compiled graphs call and do not look into.

    It rescales no W, but says by what in `factor`: in a compiled graph the W of a convolution may be a copy, laid out
    for the processor.
    """
    follower = _followers.get(key)
    found = None if follower is None else follower.settle(training, followed)
    if found is not None:
        factor.copy_(found)


@settle_compiled.register_fake
def _(followed: Sequence[Tensor], factor: Tensor, weight: Tensor, key: int, training: bool) -> None:
    return None
