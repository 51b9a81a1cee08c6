"""Detection of updates of W, and the changes of B and W that a rule makes after one.

A plain `loss.backward(); optimizer.step()` is enough. An update is a change of W after a backward pass that gave it a
gradient. At that moment only counters change; the update is settled at the next use of B. If an existing optimizer
holds W, its steps count and nothing else (neither a perturbation by SAM nor the trial points of a line search).
Otherwise the change itself counts, which the version counter of the parameter shows.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from biotorch import _seeding
from biotorch.layers.connection import Connection
from biotorch.layers.tensors import as_state, norm_name
from biotorch.layers.watching import PATIENCE, Watch, differs, find_optimizers, is_paused, sample, uncompiled, watch
from biotorch.rules import FeedbackRule, Update

#: Number of changes of W in a row that may come from its optimizer without a step (as in SAM). After more of them,
#: somebody else must be updating W.
_TRIALS = 2
#: Followers by key, for the operator that stands for `settle` in compiled graphs.
_followers: weakref.WeakValueDictionary[int, Follower] = weakref.WeakValueDictionary()
_lock = threading.RLock()


class Follower:
    """Settles the updates of one W: restores its norm under `constrain_weights`, and lets the rule change B."""

    def __init__(self, connection: Connection) -> None:
        self._connection = weakref.ref(connection)
        #: `told`: `biotorch.updated` reported an update. `overlook`: the last change of W was no update.
        self.told = self.overlook = False
        self._busy = False
        #: Counts of gradients and steps that are settled, by parameter, because another may take W's place for a while.
        self._settled: dict[Watch, tuple[int, int]] = {}
        #: Gradient counts at which W had changed without a step of the optimizer that holds it.
        self._trials: set[int] = set()
        self._silent = 0
        _followers[id(self)] = self
        #: Key of this follower in compiled graphs. It is a tensor, because a number would become part of the graph,
        #: which layers of one kind share.
        self.key = torch.tensor(id(self))
        if not connection.is_computed:
            self._attend(connection.trained)

    @uncompiled
    def settle(
        self,
        training: bool = False,
        followed: Sequence[Tensor] | None = None,
        at_once: bool = False,
        needed: bool = True,
    ) -> Tensor | None:
        """Restore the norm of W and let the rule change B, if W was updated since the last call.

        Args:
            training: whether a training forward pass begins; then also check that no update goes unseen.
            followed: see `follow`.
            at_once: whether to answer even if W was written after the step, as by an average that is swapped in for
                evaluation. Otherwise the answer waits for a training forward pass.
            needed: whether B itself is to be used. If not, a rule that redraws it draws no B for this update.

        Returns:
            The result of `follow` if there was an update, else None.

        Raises:
            RuntimeError: W changes in a way that cannot be seen.
        """
        connection = self._connection()
        if connection is None or connection.is_computed or is_paused():
            return None
        with _lock:
            if self._busy:
                return None  # called from within `follow`, which reads B
            found, parameter = self._attend(connection.trained), connection.trained
            missed = self._missed(found, parameter)
            swapped = found.steps != self._settled[found][1] and parameter._version != found.stepped_version
            if swapped and not (training or at_once or self.told):
                missed = 0  # they wait
            if missed or (needed and connection.is_behind):
                self._busy = True
                try:
                    return follow(connection, missed, followed, needed)
                finally:
                    self._busy = False
                    if missed:
                        self.told = False
                        self._settled[found] = found.gradients, found.steps
                        self._trials, self._silent = set(), 0
            if training:
                self._require_visible(connection, found)
            return None

    def settle_compiled(self, connection: Connection, training: bool) -> None:
        """`settle` for a graph that is being compiled: the graph calls an operator, and rescales W itself.

        `connection` is an argument because tracing cannot go through the weak reference.
        """
        weight = connection.trained
        with torch.no_grad():
            factor = torch.ones((), device=weight.device, dtype=weight.dtype)
            settle_compiled(followed_tensors(connection), factor, weight, self.key, training)
            if connection.layer.rule.constrain_weights:
                for tensor in rescaled_tensors(connection):
                    tensor.mul_(factor)

    def _attend(self, parameter: nn.Parameter) -> Watch:
        """Return the watch of the parameter that is W now, and start counting from its present state if it is new."""
        found = watch(parameter)
        if found not in self._settled:
            self._settled = {each: seen for each, seen in self._settled.items() if each.parameter() is not None}
            # A copy made between backward pass and step has a gradient that is not settled yet.
            self._settled[found] = found.gradients - (parameter.grad is not None), found.steps
            connection = self._connection()
            found.by_contents |= connection is not None and connection.layer.rule.constrain_weights
        if self.overlook:
            self.overlook, self._silent = False, 0
            found.overlook(parameter)
        return found

    def _missed(self, found: Watch, parameter: nn.Parameter) -> int:
        """Number of updates that have not been settled."""
        gradients, steps = self._settled[found]
        if self.told or (found.gradients != gradients and found.steps != steps):
            return 1
        if found.gradients == gradients or found.in_step or not found.is_changed(parameter):
            return 0
        if not found.is_held and not found.searched:
            find_optimizers()
        if not found.is_held:
            return 1
        self._trials.add(found.gradients)  # a perturbation, as in SAM, or an update that is not the optimizer's
        if len(self._trials) <= _TRIALS:
            return 0
        found.release()
        return len(self._trials)

    def _require_visible(self, connection: Connection, found: Watch) -> None:
        """Compare the values of W now and then, while gradients come and no change is seen."""
        if found.gradients == self._settled[found][0] or connection.trained._version != found.version:
            return
        self._silent += 1
        if self._silent == 1:
            self._sample = sample(connection.trained)
        elif self._silent == PATIENCE:
            self._silent = 0
            if found.is_held or found.in_step or not differs(self._sample, connection.trained):
                return  # an optimizer that holds W counts its steps
            find_optimizers()  # walks over all objects of the process: only where W has changed
            if not found.is_held:
                raise RuntimeError(
                    f"{connection.name}: its weight changes in a way that cannot be seen (through .data, a flat "
                    f"buffer, a sharded parameter), but rule {connection.layer.rule.name!r} must answer every update: "
                    "call biotorch.updated(model) once after every optimizer step. constrain_weights cannot rescale "
                    "a sharded weight at all: use DDP"
                )


def followed_tensors(connection: Connection) -> list[Tensor]:
    """The tensors of B that the rule changes after an update."""
    return list(connection.tensors.values()) if connection.layer.rule.has_update() else []


def rescaled_tensors(connection: Connection) -> list[Tensor]:
    """The tensors that `constrain_weights` rescales: W, and a B that takes the same steps as W.

    If such a B is made of several tensors, rescaling the first is enough.
    """
    learned = connection.learned[:1] if isinstance(connection.layer.rule, FeedbackRule) else []
    return [connection.trained, *learned]


@torch.no_grad()
def follow(connection: Connection, missed: int, followed: Sequence[Tensor] | None, needed: bool) -> Tensor:
    """Answer an update of W: restore its norm, then let the rule change B.

    Args:
        connection: the connection of W.
        missed: number of updates of W since the last call; more than 1 if some went unseen, 0 if only B is behind.
        followed: B's tensors in a compiled graph, which then rescales W itself; None for the connection's own tensors.
        needed: see `Follower.settle`.

    Returns:
        The factor by which W is rescaled, a scalar.
    """
    layer, rule = connection.layer, connection.layer.rule
    connection.updates += missed
    # Without autocast, so that the result has the same bits in a forward pass and at a checkpoint.
    with torch.autocast(connection.trained.device.type, enabled=False):
        whole = getattr(connection.trained, "full_tensor", None)  # only a sharded W has it
        weight: Tensor = connection.trained if whole is None else whole()
        factor = weight.new_ones(())
        if rule.constrain_weights and missed:
            norm, wanted = weight.norm(), getattr(layer, norm_name(connection.parameter))
            factor = torch.where(norm > 0, wanted / norm, factor)
            if followed is not None:
                weight = weight * factor
            else:
                with contextlib.nullcontext() if connection.learner is None else connection.learner.rescaling():
                    for tensor in rescaled_tensors(connection):
                        tensor.mul_(factor)
        _meet_others(connection)
        if connection.is_behind and (needed or not rule.redraws):
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
    """The `Update` that the rule gets, with `weight` as the new W.

    If `forward` is given, it takes the place of `weight` in the layer's response to activity.
    """
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


# DDP broadcasts buffers, and so B, at every forward pass. The sending process may have another seed, and may have
# settled an update that this process has not. So the seed and update number of B are a buffer, too.


def _meet_others(connection: Connection) -> None:
    """Read the seed of B and the number of updates that it has had, which may come from another process."""
    digits = connection.layer._buffers.get("feedback_numbers")  # directly, because attribute access settles updates
    if digits is None:
        return
    if digits._version != connection.known_version and not digits.is_meta:  # else reading would wait for the device
        own = [int(digit) for digit in _row(connection, digits).tolist()]
        parts = own[:10], own[10:]
        connection.seed, connection.answered = (sum(d << (7 * i) for i, d in enumerate(part)) for part in parts)


def tell_others(connection: Connection) -> None:
    """Store the seed and update number of B in digits of seven bits, which every floating type holds exactly."""
    parts = (connection.seed, 10), (connection.updates, 5)
    digits = connection.layer._buffers["feedback_numbers"]
    assert digits is not None
    _row(connection, digits).copy_(torch.tensor([(part >> (7 * i)) & 127 for part, size in parts for i in range(size)]))
    connection.known_version, connection.answered = digits._version, connection.updates


def _row(connection: Connection, digits: Tensor) -> Tensor:
    return digits[list(connection.layer.connections).index(connection)]


@torch.library.custom_op("biotorch::settle", mutates_args=("followed", "factor"))
def settle_compiled(followed: Sequence[Tensor], factor: Tensor, weight: Tensor, key: Tensor, training: bool) -> None:
    """`Follower.settle` as an operator that compiled graphs call without tracing it.

    It does not rescale W but writes the factor to `factor`, because in a compiled graph the W of a convolution may
    be a copy in another memory layout.
    """
    follower = _followers.get(int(key))
    found = None if follower is None else follower.settle(training, followed)
    if found is not None:
        factor.copy_(found)


@settle_compiled.register_fake
def _(followed: Sequence[Tensor], factor: Tensor, weight: Tensor, key: Tensor, training: bool) -> None:
    return None
