"""What follows an update of W, and whether B learns: a user's plain `loss.backward(); optimizer.step()` is enough.

An update is a change of W after a backward pass that gave it a gradient. Nothing is done when it happens: optimizers
only leave a mark, which is settled at the next use of B. Where a living optimizer holds W its steps count and nothing
else does (neither a perturbation by SAM nor the trial points of a line search); elsewhere the change itself counts, as
the version counter of the parameter shows it.
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

#: Forward passes with a gradient and without a visible change after which contents are compared.
_PATIENCE = 8
#: Changes without a step after which an optimizer that holds W passes for one that is not in use.
_TRIALS = 4
#: Updates of W after which B has to have had one, although an optimizer holds it.
_RARELY = 50


class Watch:
    """What has happened to a parameter: gradients that reached it, steps of the optimizers that hold it."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = weakref.ref(parameter)
        #: Gradients that backward passes have handed it, and its version when the last one came.
        self.gradients, self.version = 0, parameter._version
        #: Steps that optimizers have made on it, and the `weight_decay` of the last.
        self.steps = 0
        self.decay: float | None = None
        #: The living optimizers that are known to hold it; whether all were looked for; whether one is in its step.
        self.holders = weakref.WeakSet[Optimizer]()
        self.searched = self.in_step = self.had_gradient = False
        #: Whether contents have to tell changes: compiled graphs raise the version of what they may rescale.
        self.by_contents = False
        self._sample: Tensor | None = None
        self.learners = weakref.WeakSet[Learner]()
        self._listens = False

    def listen(self) -> None:
        """Count gradients, from when on there are any: a frozen parameter has none."""
        parameter = self.parameter()
        if not self._listens and parameter is not None and parameter.requires_grad and parameter.is_leaf:
            self._listens, me = True, weakref.ref(self)
            handle = parameter.register_hook(lambda gradient: _count(me))  # type: ignore[no-untyped-call]
            weakref.finalize(self, handle.remove)

    def begin_step(self, optimizer: Optimizer) -> None:
        """An optimizer that holds it is going to step."""
        parameter = self.parameter()
        self.holders.add(optimizer)
        self.in_step, self.had_gradient = True, parameter is not None and parameter.grad is not None

    def end_step(self, counts: bool, decay: float | None) -> None:
        """It has stepped; without a gradient that changes nothing."""
        parameter = self.parameter()
        self.in_step = False
        if counts and (self.had_gradient or (parameter is not None and parameter.grad is not None)):
            self.steps += 1
            self.decay = decay

    @property
    def is_held(self) -> bool:
        """Whether a living optimizer holds it, as far as is known."""
        return len(self.holders) > 0

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


def _count(watch: weakref.ref[Watch]) -> None:
    """Hook of a gradient. It keeps no watch alive, and goes with it."""
    found = watch()
    parameter = None if found is None else found.parameter()
    if found is not None and parameter is not None:
        found.gradients += 1
        found.overlook(parameter)
        for learner in list(found.learners):
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
        self.told = self.overlook = False
        self._busy = False
        #: Gradients and steps that are settled, by parameter: another one may take its place for a while.
        self._settled: dict[Watch, tuple[int, int]] = {}
        #: Gradients after which W had changed without a step of the optimizer that holds it.
        self._trials: set[int] = set()
        self._silent = 0
        self.key = id(self)
        _followers[self.key] = self
        if not connection.is_computed:
            self._attend(connection.trained)

    def settle(self, training: bool = False, followed: Sequence[Tensor] | None = None) -> Tensor | None:
        """Do what follows an update, if there was one since the last call.

        Args:
            training: a forward pass begins that may train: also make sure that no update goes unseen.
            followed: see `Connection.follow`, whose result is returned if there was an update.

        Raises:
            RuntimeError: W changes in a way that cannot be seen.
        """
        connection = self._connection()
        if connection is None or connection.is_computed or _paused:
            return None
        with _lock:
            if self._busy:
                return None  # what follows looks at B, too
            found, parameter = self._attend(connection.trained), connection.trained
            missed = self._missed(found, parameter)
            if missed:
                self._busy = True
                try:
                    return connection.follow(missed, followed)
                finally:
                    self._busy = self.told = False
                    self._settled[found] = found.gradients, found.steps
                    self._trials, self._silent = set(), 0
            if training:
                self._require_visible(connection, found)
            return None

    def _attend(self, parameter: nn.Parameter) -> Watch:
        """The watch of the parameter that is W now."""
        found = watch(parameter)
        if found not in self._settled:
            self._settled = {each: seen for each, seen in self._settled.items() if each.parameter() is not None}
            self._settled[found] = found.gradients, found.steps
            connection = self._connection()
            found.by_contents |= connection is not None and connection.layer.rule.constrain_weights
        if self.overlook:
            self.overlook = False
            found.overlook(parameter)
        return found

    def _missed(self, found: Watch, parameter: nn.Parameter) -> int:
        """How many updates have not been settled."""
        gradients, steps = self._settled[found]
        if self.told or (found.gradients != gradients and found.steps != steps):
            return 1
        if found.gradients == gradients or found.in_step or not found.is_changed(parameter):
            return 0
        if not found.is_held and not found.searched:
            _find_optimizers()
        if not found.is_held:
            return 1
        self._trials.add(found.gradients)  # perturbations, as SAM's; many without a step are updates by somebody else
        if len(self._trials) <= _TRIALS:
            return 0
        found.holders.clear()
        return len(self._trials)

    def _require_visible(self, connection: Connection, found: Watch) -> None:
        """Compare contents now and then, while gradients come and no change is seen."""
        if found.gradients == self._settled[found][0] or connection.trained._version != found.version:
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
                    "biotorch.updated(model) once after every optimizer step. constrain_weights cannot follow a "
                    "sharded weight at all: use DDP"
                )


class Learner:
    """Makes sure that a B which gets gradients learns: that whoever steps on W steps on B, too."""

    def __init__(self, connection: Connection) -> None:
        self._connection = weakref.ref(connection)
        self._watches: list[Watch] = []
        self._advised = False
        self.look()

    def on_gradient(self) -> None:
        """In compiled graphs there is no look at the forward: look at the second gradient without one."""
        self._unlooked += 1
        if self._unlooked >= len(self._watches):
            self.look()

    def look(self) -> None:
        """Compare what has changed since the last call, at the beginning of a forward pass that may train.

        Raises:
            RuntimeError: W was updated twice, and B, which had gradients, was not.
        """
        connection = self._connection()
        if connection is None or connection.is_computed or _paused:
            return
        connection.freeze_with_weight()
        watches = [watch(parameter) for parameter in (connection.trained, *connection.learned)]
        if watches != self._watches:
            self._watches, self._seen, self._gradients = watches, [each.changes for each in watches], 0
            self._idle = self._silent = 0
            for each in watches[1:]:
                each.learners.add(self)
        self._unlooked = 0
        seen, self._seen = self._seen, [each.changes for each in watches]
        gradients, self._gradients = self._gradients, sum(each.gradients for each in watches[1:])
        if gradients == self._gradients:
            return
        changed = [now != before for now, before in zip(self._seen, seen, strict=True)]
        if changed[0] and watches[0].steps > 0 and not self._advised:  # whoever updates by hand knows what it does
            self._advised = True
            connection.layer.rule.check_decay(connection.name, watches[0].decay)
        if any(changed):
            self._silent, self._idle = 0, self._idle + 1 if changed[0] and not all(changed) else 0
        else:
            self._silent += 1  # perhaps through .data
        if 1 in (self._silent, self._idle):
            self._samples = [_sample(each) for each in (connection.trained, *connection.learned)]
        elif self._idle > 1 or self._silent == _PATIENCE:
            self._require_learning(connection)
            self._silent = 0

    def _require_learning(self, connection: Connection) -> None:
        parameters = [connection.trained, *connection.learned]
        moved = [_differs(sample, each) for sample, each in zip(self._samples, parameters, strict=True)]
        stuck = [each for each, its in zip(self._watches[1:], moved[1:], strict=True) if not its]
        if not moved[0] or (self._silent and len(stuck) < len(moved) - 1):
            return
        if not all(each.is_held for each in stuck):
            _find_optimizers()
        if not all(each.is_held for each in stuck) or (stuck and self._idle > _RARELY):  # held: stepped more rarely
            raise RuntimeError(
                f"{connection.name}: W learns and its B does not: rule {connection.layer.rule.name!r} gives B "
                "gradients, and no optimizer steps on it. Build the optimizer after `convert`, of all parameters, or "
                "give it a group for biotorch.feedback_parameters(model). A B that is to stay is frozen: "
                "requires_grad_(False)"
            )


def _sample(tensor: Tensor) -> Tensor:
    """Some thousand elements, evenly spread."""
    flat = tensor.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // 4096)].clone()


def _differs(sample: Tensor, tensor: Tensor) -> bool:
    return not torch.equal(sample.nan_to_num(), _sample(tensor).nan_to_num())


def _find_optimizers() -> None:
    """Note what the living optimizers hold; torch keeps no list of them, and some step for the first time after SAM."""
    for each in gc.get_objects():
        if issubclass(type(each), Optimizer):
            for found in filter(None, map(_watches.get, map(id, _parameters(each)))):
                found.holders.add(each)
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
