"""One connection: a weight matrix W, its feedback weights B, and what else belongs to the two."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from biotorch import seeding
from biotorch.broadcast import Slice
from biotorch.layers.updates import Follower, Learner, settle_compiled
from biotorch.rules import FeedbackRule, Update

if TYPE_CHECKING:
    from biotorch.layers.state import RuleState


class Connection:
    """W and B of one connection. Most layers have one; attention has two or four, recurrent cells have two.

    The tensors are parameters and buffers of the layer under names made of W's, so that they are moved, saved and
    averaged like everything else of a network; what else the connection needs is here. B is a parameter under rules by
    which it learns by a gradient, else a buffer.

    Attributes:
        parameter: name of W within it: `weight`, `in_proj_weight`, `out_proj.weight` ...
        seed: of the randomness of B, together with `updates`.
        updates: how many updates of W have been settled since the conversion.
        parts: names of B's tensors: `("",)` where it is one, those that the rule gives where there are several.
        columns: the columns that are B in the matrix that `holder`, a layer, keeps for the whole network.
        twin: an earlier connection with the same W and B, which keeps both up to date.
    """

    def __init__(self, layer: RuleState, parameter: str, seed: int) -> None:
        self._layer: weakref.ref[RuleState] | None = weakref.ref(layer)
        self.parameter = parameter
        self.seed = seed if parameter == "weight" else seeding.derive(seed, parameter)
        self.updates = 0
        self.parts: tuple[str, ...] = ()
        self.columns: Slice | None = None
        self.holder: RuleState | None = None
        self.twin: Connection | None = None
        self.follower: Follower | None = None
        self.learner: Learner | None = None
        self._frozen_with_weight: list[str] = []
        self._known_version = -1

    @property
    def layer(self) -> RuleState:
        """The layer, which keeps its connections alive, and not they it."""
        found = None if self._layer is None else self._layer()
        if found is None:
            raise ReferenceError(f"the layer of this connection ({self.parameter}) is gone")
        return found

    def is_bound(self, layer: RuleState | None = None) -> bool:
        """Whether it belongs to a living layer, and to this one."""
        found = None if self._layer is None else self._layer()
        return found is not None and (layer is None or layer is found)

    def bind(self, layer: RuleState) -> None:
        """Make it a connection of `layer`, a copy of the one that it belonged to."""
        self._layer = weakref.ref(layer)

    @property
    def name(self) -> str:
        """The layer's name for messages, with that of W where the layer has several."""
        label = self.layer.label or type(self.layer).__name__
        return label if self.parameter == "weight" else f"{label}.{self.parameter}"

    # W and B ---------------------------------------------------------------------------------------

    @property
    def trained(self) -> nn.Parameter:
        """The parameter itself."""
        found = self._home.get(self.parameter.rpartition(".")[2])
        if found is None:
            raise AttributeError(f"{self.name}: its weight is computed from other tensors (pruning, a parametrization)")
        return found

    @property
    def _home(self) -> Mapping[str, nn.Parameter | None]:
        return self.layer.get_submodule(self.parameter.rpartition(".")[0])._parameters

    @property
    def is_computed(self) -> bool:
        """Whether W is no parameter (any more), but computed: pruned, parametrized."""
        return self._home.get(self.parameter.rpartition(".")[2]) is None

    @property
    def is_sharded(self) -> bool:
        """Whether this process has a part of W alone (FSDP2), outside of a forward and backward pass."""
        return hasattr(self.trained, "full_tensor")

    @property
    def weight(self) -> Tensor:
        """W as (out, in, ...), a view where the layer keeps it otherwise."""
        self.settle(at_once=True)
        return self.layer.oriented(self.parameter)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """B's own tensors by part, as they are; none where B is a slice of a shared matrix."""
        return self._tensors_in(self.layer)

    @property
    def learned(self) -> list[nn.Parameter]:
        """The tensors of B that are parameters."""
        return [tensor for tensor in self.tensors.values() if isinstance(tensor, nn.Parameter)]

    @property
    def state(self) -> Any:
        """What the rule keeps of B: a tensor, tensors by name, or None."""
        self.settle(at_once=True)
        return self.state_in(self.layer)

    def state_in(self, layer: nn.Module) -> Any:
        """The same of a replica of the layer, which has tensors of its own, and as it is."""
        return as_state(self._tensors_in(layer))

    def _tensors_in(self, layer: nn.Module) -> dict[str, Tensor]:
        names = {part: feedback_name(self.parameter, part) for part in self.parts}
        own: dict[str, Any] = {**layer._buffers, **layer._parameters}  # as they are; a replica has attributes
        return {part: own[name] if name in own else getattr(layer, name) for part, name in names.items()}

    @property
    def feedback(self) -> Tensor | None:
        """B, or what the rule keeps of it; None where it has none."""
        if self.columns is not None:
            matrix = self.layer.shared_matrix
            rows = matrix[:, : self.columns.size] * self.columns.scale
            return rows.view(len(matrix), *self.layer.projection_shape(self.parameter))
        state = self.state
        return self.effective_feedback if isinstance(state, Mapping) else state

    @property
    def feedback_shape(self) -> tuple[int, ...] | None:
        """The shape of B, without making it."""
        if self.columns is not None:
            return (len(self.layer.shared_matrix), *self.layer.projection_shape(self.parameter))
        whole = self.tensors.get("", self.weight) if self.parts else None
        return None if whole is None else tuple(whole.shape)

    @property
    def effective_feedback(self) -> Tensor | None:
        """B as the backward pass uses it, in the shape of W; None where the rule has no such thing."""
        rule = self.layer.rule
        if isinstance(rule, FeedbackRule) and not rule.trains_output_only:
            with torch.no_grad():
                return rule.feedback(self.weight, self.state)
        return None

    # Updates ---------------------------------------------------------------------------------------

    def keep_up(self) -> None:
        """Begin to look for updates, where the rule asks for it; what has happened before counts for nothing."""
        rule = self.layer.rule
        self.follower = self.learner = None
        if rule.has_update() or rule.constrain_weights:
            self.follower = Follower(self)
        if self.learned:
            self.learner = Learner(self)

    @property
    def owner(self) -> Connection:
        """The connection that keeps B up to date: the twin, as long as it has its rule."""
        twin = self.twin
        return twin if twin is not None and twin.is_bound() and twin in twin.layer.connections else self

    def rejoin(self) -> None:
        """Share B's tensors with the twin again: moved or cast, buffers of two layers come apart."""
        if self.owner is self or self.learned:
            return
        for part, own in self.tensors.items():
            shared = self.owner.tensors[part]
            if own is not shared and (own.device, own.dtype) == (shared.device, shared.dtype):
                self.layer._buffers[feedback_name(self.parameter, part)] = shared

    def settle(self, at_once: bool = False) -> None:
        """Bring B, and the norm of W, up to date with the updates of W; see `Follower.settle`."""
        follower = self.owner.follower
        if follower is not None and not torch.compiler.is_compiling():  # there, `begin` has done it
            follower.settle(at_once=at_once)
            self.rejoin()

    def begin(self, training: bool) -> None:
        """The same at the beginning of a forward pass, where it may be compiled.

        Raises:
            RuntimeError: W is no parameter any more, its updates cannot be seen, or B does not learn.
        """
        if training and self.is_computed and (self.learner is not None or self.owner.follower is not None):
            raise RuntimeError(
                f"{self.name}: its weight is computed from other tensors (pruning, a parametrization), and the B of "
                f"{self.layer.rule.name!r} goes with a parameter: make it one again (prune.remove, "
                "parametrize.remove_parametrizations), or take a rule whose B stays, as fa or usf"
            )
        owner, compiling = self.owner, torch.compiler.is_compiling()
        if self.learner is not None and training and not compiling:
            self.learner.look()
        if torch.compiler.is_exporting():  # what is exported updates nothing
            return
        if owner.follower is not None and compiling:
            with torch.no_grad():
                factor = torch.ones((), device=owner.trained.device, dtype=owner.trained.dtype)
                settle_compiled(owner.followed, factor, owner.trained, owner.follower.key, training)
                if owner.layer.rule.constrain_weights:
                    for tensor in owner.rescaled:
                        tensor.mul_(factor)
        elif owner.follower is not None:
            owner.follower.settle(training)
            self.rejoin()

    @property
    def followed(self) -> list[Tensor]:
        """The tensors of B that the rule changes after an update."""
        return list(self.tensors.values()) if self.layer.rule.has_update() else []

    @property
    def rescaled(self) -> list[Tensor]:
        """The tensors that `constrain_weights` rescales: W, and a B that takes W's steps (a factor of it is enough)."""
        rule = self.layer.rule
        return [self.trained, *(self.learned[:1] if isinstance(rule, FeedbackRule) else [])]

    @torch.no_grad()
    def follow(self, missed: int = 1, followed: Sequence[Tensor] | None = None) -> Tensor:
        """What follows an update of W: its norm, then B.

        Args:
            missed: how many updates of W it follows, if several had gone unseen.
            followed: B's tensors in a compiled graph, which then rescales W by itself.

        Returns:
            By what W is rescaled, a scalar.
        """
        # Within a forward pass, or at a checkpoint: the same bits.
        self.updates += missed
        with torch.autocast(self.trained.device.type, enabled=False):
            return self._follow(followed)

    def _follow(self, followed: Sequence[Tensor] | None) -> Tensor:
        layer, rule = self.layer, self.layer.rule
        whole = getattr(self.trained, "full_tensor", None)  # of a sharded W
        weight: Tensor = self.trained if whole is None else whole()
        factor = weight.new_ones(())
        if rule.constrain_weights:
            norm, wanted = weight.norm(), getattr(layer, norm_name(self.parameter))
            factor = torch.where(norm > 0, wanted / norm, factor)
            if followed is not None:
                weight = weight * factor
            else:
                with contextlib.nullcontext() if self.learner is None else self.learner.rescaling():
                    for tensor in self.rescaled:
                        tensor.mul_(factor)
        if rule.has_update() and self._meet_others() < self.updates:
            tensors = self.followed if followed is None else followed
            known = dict(zip(self.parts, tensors, strict=True))
            rule.after_update(self.update(layer.orient(weight), known, self.updates))
            self.tell_others()
        return factor

    def update(
        self, weight: Tensor, tensors: Mapping[str, Tensor], number: int, forward: Tensor | None = None
    ) -> Update:
        """What the rule sees of an update that has made `weight` of W; `forward` answers to activity in its place."""
        layer, seed = self.layer, seeding.derive(self.seed, "feedback", number)
        return Update(
            weight,
            as_state(tensors),
            lambda: seeding.generator(seed, weight.device),
            layer=layer.label,
            number=number,
            groups=getattr(layer, "groups", 1),
            forward=forward,
        )

    # DDP broadcasts buffers at every forward pass, from a process that may have been seeded apart, and may have settled
    # an update already that this one has not: seed and number of B travel beside it.

    def _meet_others(self) -> int:
        """Take the seed of B as it is, which may be another process's, and return how many updates B has had."""
        digits = self.layer.feedback_numbers
        if digits._version == self._known_version or digits.is_meta:  # else the device would have to be waited for
            return self.updates - 1
        own = [int(digit) for digit in digits[self._index].tolist()]
        self.seed, number = (sum(digit << (7 * i) for i, digit in enumerate(part)) for part in (own[:10], own[10:]))
        return number

    def tell_others(self) -> None:
        """Write down seed and number of B, in digits of seven bits, which are exact in every floating type."""
        own = [(self.seed >> (7 * i)) & 127 for i in range(10)] + [(self.updates >> (7 * i)) & 127 for i in range(5)]
        digits = self.layer.feedback_numbers
        digits[self._index].copy_(torch.tensor(own))
        self._known_version = digits._version

    @property
    def _index(self) -> int:
        return list(self.layer.connections).index(self)

    def freeze_with_weight(self) -> None:
        """Freeze a B that learns where W is frozen, and only as long as that is so."""
        self.thaw_with_weight()
        if not self.trained.requires_grad:
            for part, tensor in self.tensors.items():
                if tensor.requires_grad:
                    tensor.requires_grad_(False)
                    self._frozen_with_weight.append(part)

    def thaw_with_weight(self) -> None:
        """Take back what `freeze_with_weight` did, where W is not frozen any more."""
        if self._frozen_with_weight and self.trained.requires_grad:
            for part in self._frozen_with_weight:
                self.tensors[part].requires_grad_(True)
            self._frozen_with_weight = []

    def __getstate__(self) -> dict[str, Any]:
        # A copy's layer binds it anew; it may come without the layer of its twin.
        own = {"seed": self.owner.seed, "updates": self.owner.updates}
        return {**self.__dict__, **own, "_layer": None, "follower": None, "learner": None}


def as_state(tensors: Mapping[str, Tensor]) -> Any:
    """What rules take for the state of B: a tensor, tensors by name, or None."""
    return tensors.get("", tensors or None)


def feedback_name(parameter: str, part: str = "") -> str:
    """Where a layer keeps the B of a parameter: `feedback` of `weight`, `in_proj_feedback` of `in_proj_weight`."""
    return _named_after(parameter, f"feedback_{part}" if part else "feedback")


def norm_name(parameter: str) -> str:
    """Where it keeps the norm that W started with, for `constrain_weights`."""
    return _named_after(parameter, "initial_norm")


def _named_after(parameter: str, what: str) -> str:
    name = parameter.replace(".", "_")
    return name.replace("weight", what) if "weight" in name else f"{name}_{what}"


def is_feedback(name: str) -> bool:
    """Whether an entry of a state_dict belongs to a layer's feedback, rather than to the network."""
    last = name.rpartition(".")[2]
    return any(f"_{own}_" in f"_{last}_" for own in ("feedback", "initial_norm"))


def connections(model: nn.Module) -> dict[str, Connection]:
    """Every connection of the feedback layers of `model`, by the layer's dotted name.

    Where a layer has several, the parameter's name is added.
    """
    found = {}
    for name, layer in model.named_modules():
        own: Sequence[Connection] = getattr(layer, "connections", ())
        for connection in own:
            parts = [name, connection.parameter] if len(own) > 1 else [name]
            found[".".join(filter(None, parts))] = connection
    return found


def updated(model: nn.Module) -> None:
    """Tell the layers of `model` of an update of their weights that they cannot see.

    Updates are seen by themselves, whatever optimizer makes them; not those that are written through `.data` by hand,
    into flat buffers (DeepSpeed) or into sharded parameters (FSDP2). Call it once after each such step. What
    follows the update (a redraw of `brsf`, a mirror phase of `wm`, the norm under `constrain_weights`) is then done
    at the next use of B.

    Raises:
        RuntimeError: `constrain_weights` of a sharded W, of which no process can write the whole.
    """
    for name, connection in connections(model).items():
        if connection.follower is not None:
            if connection.layer.rule.constrain_weights and connection.is_sharded:
                raise RuntimeError(f"{name}: constrain_weights cannot rescale a sharded weight (FSDP2): use DDP")
            if connection.owner is connection:
                connection.follower.told = True
