"""What follows an update of W, and whether B learns: a user's plain `loss.backward(); optimizer.step()` is enough.

An update is a change of W after a backward pass that gave it a gradient. Nothing is done when it happens: optimizers
only leave a mark, which is settled at the next use of B. Where a living optimizer holds W its steps count and nothing
else does (neither a perturbation by SAM nor the trial points of a line search); elsewhere the change itself counts, as
the version counter of the parameter shows it.
"""

from __future__ import annotations

import contextlib
import functools
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
#: Changes of W in a row, without a step, that an optimizer which holds W may make (as SAM): then others make them.
_TRIALS = 2


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
        self.learners: weakref.WeakSet[Learner] = weakref.WeakSet()
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
        self._sample = _sample(parameter) if self.by_contents else None

    def is_changed(self, parameter: nn.Parameter) -> bool:
        """Whether it has changed since the last gradient, as far as can be seen."""
        if parameter._version == self.version:
            return False
        return self._sample is None or _differs(self._sample, parameter)


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
        _followers[id(self)] = self
        #: Finds it from a compiled graph; a number would be part of the graph, which layers of one kind share.
        self.key = torch.tensor(id(self))
        if not connection.is_computed:
            self._attend(connection.trained)

    @uncompiled
    def settle(
        self, training: bool = False, followed: Sequence[Tensor] | None = None, at_once: bool = False
    ) -> Tensor | None:
        """Do what follows an update, if there was one since the last call.

        Args:
            training: a forward pass begins that may train: also make sure that no update goes unseen.
            at_once: also where W has been written since the step, as by an average that is swapped in for evaluation;
                else that waits for a training forward pass.
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
            swapped = found.steps != self._settled[found][1] and parameter._version != found.stepped_version
            if missed and (training or at_once or self.told or not swapped):
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
            # A copy made between backward pass and step comes with a gradient.
            self._settled[found] = found.gradients - (parameter.grad is not None), found.steps
            connection = self._connection()
            found.by_contents |= connection is not None and connection.layer.rule.constrain_weights
        if self.overlook:
            self.overlook, self._silent = False, 0
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
        found.release()
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
            if not found.is_held:
                _find_optimizers()
            # Whoever holds it tells when it steps.
            if not found.is_held and not found.in_step and _differs(self._sample, connection.trained):
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
        self._samples: list[Tensor] = []
        #: Places in `_watches` of what has learned since the last look.
        self._learned: set[int] = set()
        self._advised = False
        self.look()

    @contextlib.contextmanager
    def rescaling(self) -> Iterator[None]:
        """Inside, B is rescaled with W: that is no learning, and what it has learned before is not forgotten."""
        self._learned |= {i for i, each in enumerate(self._watches) if each.changes != self._seen[i]} - {0}
        yield
        for i, each in enumerate(self._watches[1:], 1):
            self._seen[i] = each.changes
            parameter = each.parameter()
            if i < len(self._samples) and parameter is not None:
                self._samples[i] = _sample(parameter)

    def on_gradient(self) -> None:
        """In compiled graphs there is no look at the forward: look at the second gradient without one."""
        self._unlooked += 1
        connection = self._connection()
        if self._unlooked >= len(self._watches) and connection is not None and connection.layer.training:
            self.look()

    @uncompiled
    def look(self) -> None:
        """Compare what has changed since the last call, at the beginning of a training forward pass.

        Raises:
            RuntimeError: W was updated twice, and B, which had gradients, was not.
        """
        connection = self._connection()
        if connection is None or connection.is_computed or _paused:
            return
        connection.thaw_with_weight()
        parameters = [connection.trained, *(each for each in connection.learned if each.requires_grad)]
        watches = [watch(parameter) for parameter in parameters]
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
        learned, self._learned = self._learned, set()
        changed = [now != seen[i] or i in learned for i, now in enumerate(self._seen)]
        if changed[0] and watches[0].steps > 0 and not self._advised:  # whoever updates by hand knows what it does
            self._advised = True
            connection.layer.rule.check_decay(connection.name, watches[0].decay)
        if any(changed):
            self._silent, self._idle = 0, self._idle + 1 if changed[0] and not all(changed) else 0
        else:
            self._silent += 1  # perhaps through .data
        if 1 in (self._silent, self._idle):
            self._samples = [_sample(each) for each in parameters]
        elif self._idle > 1 or self._silent == _PATIENCE:
            self._require_learning(connection, parameters)
            self._silent = 0

    def _require_learning(self, connection: Connection, parameters: list[nn.Parameter]) -> None:
        moved = [_differs(sample, each) for sample, each in zip(self._samples, parameters, strict=True)]
        stuck = [each for each, its in zip(self._watches[1:], moved[1:], strict=True) if not its]
        if not moved[0] or (self._silent and len(stuck) < len(moved) - 1):
            return
        if not all(each.is_held for each in stuck):
            _find_optimizers()
        if not all(each.is_held for each in stuck):  # held: stepped more rarely
            raise RuntimeError(
                f"{connection.name}: W learns and its B does not: rule {connection.layer.rule.name!r} gives B "
                "gradients, and no optimizer steps on it. Build the optimizer after `convert`, of all parameters, or "
                "give it a group for biotorch.feedback_parameters(model). A B that is to stay is frozen: "
                "requires_grad_(False)"
            )


def _sample(tensor: Tensor) -> Tensor:
    """A copy, of large tensors some thousand elements of all rows and columns alike."""
    flat = tensor.detach().reshape(-1)
    return flat.clone() if flat.numel() <= 4096 else flat[_places(flat.numel(), flat.device)]


@functools.lru_cache(maxsize=64)
def _places(n: int, device: torch.device) -> Tensor:
    return torch.randint(n, (4096,), generator=torch.Generator().manual_seed(n)).to(device)


def _differs(sample: Tensor, tensor: Tensor) -> bool:
    return not torch.equal(sample.nan_to_num(), _sample(tensor).nan_to_num())


def _find_optimizers() -> None:
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


@torch.library.custom_op("biotorch::settle", mutates_args=("followed", "factor"))
def settle_compiled(followed: Sequence[Tensor], factor: Tensor, weight: Tensor, key: Tensor, training: bool) -> None:
    """`Follower.settle` as an operator, which compiled graphs call and do not look into.

    It rescales no W, but says by what in `factor`: in a compiled graph the W of a convolution may be a copy, laid out
    for the processor.
    """
    follower = _followers.get(int(key))
    found = None if follower is None else follower.settle(training, followed)
    if found is not None:
        factor.copy_(found)


@settle_compiled.register_fake
def _(followed: Sequence[Tensor], factor: Tensor, weight: Tensor, key: Tensor, training: bool) -> None:
    return None
