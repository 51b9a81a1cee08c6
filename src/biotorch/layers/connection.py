"""One connection: a weight matrix W, its feedback weights B, and what else belongs to the two."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from biotorch import _seeding
from biotorch.kernel.broadcast import Slice
from biotorch.layers.tensors import as_state, feedback_name
from biotorch.rules import FeedbackRule, Rule


class Follower(Protocol):
    """Settles what follows an update of W, see `biotorch.layers.updates`."""

    told: bool
    overlook: bool

    def settle(self, training: bool = False, *, at_once: bool = False) -> object: ...

    def settle_compiled(self, connection: Connection, training: bool) -> None: ...


class Learner(Protocol):
    """Checks that B learns, see `biotorch.layers.learning`."""

    def look(self) -> None: ...

    def rescaling(self) -> AbstractContextManager[None]: ...


class Connected(nn.Module):
    """A layer with weight matrices, as their connections see it."""

    #: The parameters that are weight matrices, each with a B of its own.
    weight_names: Sequence[str] = ("weight",)
    rule: Rule
    #: Each weight matrix with its B.
    connections: Sequence[Connection] = ()
    #: Under rules that change B after updates: seed and number of B, (connections, 15), see `updates.tell_others`.
    feedback_numbers: Tensor
    #: The layer's dotted name at conversion, for error messages.
    label: str = ""
    #: Whether the layer is the first of a block at whose input a direct rule's error arrives: it has one B, for that.
    at_point: bool = False

    def orient(self, matrix: Tensor) -> Tensor:
        """A parameter as (out, in, ...), as rules and operations see it; a view."""
        return matrix

    def oriented(self, parameter: str) -> Tensor:
        """A weight as (out, in, ...)."""
        return self.orient(getattr(self, parameter))

    def projection_shape(self, parameter: str = "weight") -> tuple[int, ...]:
        """Shape of one row of a direct rule's B: the input features, (C_in, *kernel_size) for a convolution."""
        return tuple(self.oriented(parameter).shape[1:])

    @property
    def shared_matrix(self) -> Tensor:
        """The matrix (n_out, columns) of which the layer's B are slices."""
        holder = self.connections[0].holder
        matrix = None if holder is None else holder._buffers.get("shared_feedback")
        if matrix is None:
            raise RuntimeError(
                f"{self.label or type(self).__name__}: the output layer that held the shared feedback was converted or "
                "reverted without this layer: convert the whole network again"
            )
        return matrix


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

    def __init__(self, layer: Connected, parameter: str, seed: int) -> None:
        self._layer: weakref.ref[Connected] | None = weakref.ref(layer)
        self.parameter = parameter
        self.seed = seed if parameter == "weight" else _seeding.derive(seed, parameter)
        self.updates = 0
        self.parts: tuple[str, ...] = ()
        self.columns: Slice | None = None
        self.holder: Connected | None = None
        self.twin: Connection | None = None
        self.follower: Follower | None = None
        self.learner: Learner | None = None
        self._frozen_with_weight: list[str] = []
        self.known_version = -1

    @property
    def layer(self) -> Connected:
        """The layer, which keeps its connections alive, and not they it."""
        found = None if self._layer is None else self._layer()
        if found is None:
            raise ReferenceError(f"the layer of this connection ({self.parameter}) is gone")
        return found

    def is_bound(self) -> bool:
        """Whether it belongs to a living layer."""
        return self._layer is not None and self._layer() is not None

    def bind(self, layer: Connected) -> None:
        """Make it a connection of `layer`, a copy of the one that it belonged to."""
        self._layer = weakref.ref(layer)

    @property
    def name(self) -> str:
        """The layer's name for messages, with that of W where the layer has several."""
        label = self.layer.label or type(self.layer).__name__
        return label if self.parameter == "weight" else f"{label}.{self.parameter}"

    @property
    def index(self) -> int:
        """Its place among the connections of the layer."""
        return list(self.layer.connections).index(self)

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
        """State of B without settling, of the layer itself or of a replica, which has tensors of its own."""
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
        """Settle, and check that updates are seen and B learns, at the beginning of a forward pass, compiled or not.

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
        if owner.follower is not None and compiling:
            if not torch.compiler.is_exporting():  # what is exported updates nothing
                owner.follower.settle_compiled(owner, training)
        elif owner.follower is not None:
            owner.follower.settle(training)
            self.rejoin()

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
