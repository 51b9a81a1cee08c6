"""What follows an update of W, and whether B learns: a user's plain `loss.backward(); optimizer.step()` is enough.

An update is a change of W after a backward pass that gave it a gradient. Nothing is done when it happens: optimizers
only leave a mark, which is settled at the next use of B. Where a living optimizer holds W its steps count and nothing
else does (neither a perturbation by SAM nor the trial points of a line search); elsewhere the change itself counts, as
the version counter of the parameter shows it.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from biotorch import _seeding
from biotorch.kernel.functions import uncompiled
from biotorch.layers.connection import Connection
from biotorch.layers.tensors import as_state, norm_name
from biotorch.layers.watching import PATIENCE, Watch, differs, find_optimizers, is_paused, sample, watch
from biotorch.rules import FeedbackRule, Update

#: Changes of W in a row, without a step, that an optimizer which holds W may make (as SAM): then others make them.
_TRIALS = 2
#: By key, for the operator that stands for `settle` in compiled graphs.
_followers: weakref.WeakValueDictionary[int, Follower] = weakref.WeakValueDictionary()
_lock = threading.RLock()


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
            followed: see `follow`, whose result is returned if there was an update.

        Raises:
            RuntimeError: W changes in a way that cannot be seen.
        """
        connection = self._connection()
        if connection is None or connection.is_computed or is_paused():
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
                    return follow(connection, missed, followed)
                finally:
                    self._busy = self.told = False
                    self._settled[found] = found.gradients, found.steps
                    self._trials, self._silent = set(), 0
            if training:
                self._require_visible(connection, found)
            return None

    def settle_compiled(self, connection: Connection, training: bool) -> None:
        """The same in a graph that is being compiled, which gets an operator for it and rescales W by itself.

        Tracing cannot go through the weak reference, hence the argument.
        """
        weight = connection.trained
        with torch.no_grad():
            factor = torch.ones((), device=weight.device, dtype=weight.dtype)
            settle_compiled(followed_tensors(connection), factor, weight, self.key, training)
            if connection.layer.rule.constrain_weights:
                for tensor in rescaled_tensors(connection):
                    tensor.mul_(factor)

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
            find_optimizers()
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
            self._sample = sample(connection.trained)
        elif self._silent == PATIENCE:
            self._silent = 0
            if not found.is_held:
                find_optimizers()
            # Whoever holds it tells when it steps.
            if not found.is_held and not found.in_step and differs(self._sample, connection.trained):
                raise RuntimeError(
                    f"{connection.name}: its weight changes in a way that cannot be seen (through .data, a flat "
                    f"buffer, a sharded parameter), and rule {connection.layer.rule.name!r} has to follow: call "
                    "biotorch.updated(model) once after every optimizer step. constrain_weights cannot follow a "
                    "sharded weight at all: use DDP"
                )


def followed_tensors(connection: Connection) -> list[Tensor]:
    """The tensors of B that the rule changes after an update."""
    return list(connection.tensors.values()) if connection.layer.rule.has_update() else []


def rescaled_tensors(connection: Connection) -> list[Tensor]:
    """The tensors that `constrain_weights` rescales: W, and a B that takes W's steps (a factor of it is enough)."""
    learned = connection.learned[:1] if isinstance(connection.layer.rule, FeedbackRule) else []
    return [connection.trained, *learned]


@torch.no_grad()
def follow(connection: Connection, missed: int, followed: Sequence[Tensor] | None) -> Tensor:
    """Do what follows an update of W: to its norm, then to B.

    Args:
        connection: that of W.
        missed: how many updates of W it follows, if several had gone unseen.
        followed: B's tensors in a compiled graph, which then rescales W by itself; None: the connection's own.

    Returns:
        By what W is rescaled, a scalar.
    """
    layer, rule = connection.layer, connection.layer.rule
    connection.updates += missed
    # Within a forward pass, or at a checkpoint: the same bits.
    with torch.autocast(connection.trained.device.type, enabled=False):
        whole = getattr(connection.trained, "full_tensor", None)  # of a sharded W
        weight: Tensor = connection.trained if whole is None else whole()
        factor = weight.new_ones(())
        if rule.constrain_weights:
            norm, wanted = weight.norm(), getattr(layer, norm_name(connection.parameter))
            factor = torch.where(norm > 0, wanted / norm, factor)
            if followed is not None:
                weight = weight * factor
            else:
                with contextlib.nullcontext() if connection.learner is None else connection.learner.rescaling():
                    for tensor in rescaled_tensors(connection):
                        tensor.mul_(factor)
        if rule.has_update() and _meet_others(connection) < connection.updates:
            tensors = followed_tensors(connection) if followed is None else followed
            known = dict(zip(connection.parts, tensors, strict=True))
            rule.after_update(update_of(connection, layer.orient(weight), known, connection.updates))
            tell_others(connection)
    return factor


def update_of(
    connection: Connection,
    weight: Tensor,
    tensors: Mapping[str, Tensor],
    number: int,
    forward: Tensor | None = None,
) -> Update:
    """What the rule sees of an update that has made `weight` of W; `forward` answers to activity in its place."""
    layer, seed = connection.layer, _seeding.derive(connection.seed, "feedback", number)
    return Update(
        weight,
        as_state(tensors),
        lambda: _seeding.generator(seed, weight.device),
        layer=layer.label,
        number=number,
        groups=getattr(layer, "groups", 1),
        forward=forward,
    )


# DDP broadcasts buffers at every forward pass, from a process that may have been seeded apart, and may have settled an
# update already that this one has not: seed and number of B travel beside it.


def _meet_others(connection: Connection) -> int:
    """Take the seed of B as it is, which may be another process's, and return how many updates B has had."""
    digits = connection.layer.feedback_numbers
    if digits._version == connection.known_version or digits.is_meta:  # else the device would have to be waited for
        return connection.updates - 1
    own = [int(digit) for digit in digits[connection.index].tolist()]
    connection.seed, number = (sum(digit << (7 * i) for i, digit in enumerate(part)) for part in (own[:10], own[10:]))
    return number


def tell_others(connection: Connection) -> None:
    """Write down seed and number of B, in digits of seven bits, which are exact in every floating type."""
    parts = (connection.seed, 10), (connection.updates, 5)
    digits = connection.layer.feedback_numbers
    digits[connection.index].copy_(torch.tensor([(part >> (7 * i)) & 127 for part, size in parts for i in range(size)]))
    connection.known_version = digits._version


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
