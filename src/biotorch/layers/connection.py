"""One connection of a layer: a weight matrix W, its feedback weights B, and the state that belongs to both."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from biotorch import _seeding
from biotorch.kernel.broadcast import Slice
from biotorch.kernel.imperfection import Imperfection, read
from biotorch.layers.tensors import as_state, feedback_name
from biotorch.rules import FeedbackRule, Rule


class _Follower(Protocol):
    """Interface of the object that brings B up to date after updates of W, see `biotorch.layers.updates`."""

    told: bool
    overlook: bool

    def settle(self, training: bool = False, *, at_once: bool = False, needed: bool = True) -> object: ...

    def settle_compiled(self, connection: Connection, training: bool) -> None: ...


class _Learner(Protocol):
    """Interface of the object that checks that B learns, see `biotorch.layers.learning`."""

    def look(self) -> None: ...

    def rescaling(self) -> AbstractContextManager[None]: ...


class Connected(nn.Module):
    """A layer with weight matrices, seen from its connections."""

    #: Names of the parameters that are weight matrices, each with a B of its own.
    weight_names: Sequence[str] = ("weight",)
    rule: Rule
    #: One connection for each weight matrix.
    connections: Sequence[Connection] = ()
    #: Seed and update count of each B as digits, (connections, 15), see `updates.tell_others`. Exists only under
    #: rules that change B after updates.
    feedback_numbers: Tensor
    #: The layer's dotted name at conversion, for error messages.
    label: str = ""
    #: Whether the layer is the first of a block at whose input the error arrives (option `points` of a direct rule).
    #: It then has a single B, for the input of the block.
    at_point: bool = False

    def orient(self, matrix: Tensor) -> Tensor:
        """View a parameter as (out, in, ...), the layout that rules and operations use."""
        return matrix

    def oriented(self, parameter: str) -> Tensor:
        """The weight `parameter` as (out, in, ...)."""
        return self.orient(getattr(self, parameter))

    def own_parameter(self, name: str) -> nn.Parameter | None:
        """The parameter `name`; None if it is computed from other tensors (pruning, weight_norm, a parametrization)."""
        owner, _, last = name.rpartition(".")
        return (self.get_submodule(owner) if owner else self)._parameters.get(last)

    def projection_shape(self, parameter: str = "weight") -> tuple[int, ...]:
        """Shape of one row of a direct rule's B: the input features, (C_in, *kernel_size) for a convolution."""
        return tuple(self.oriented(parameter).shape[1:])

    def imperfection(self, connection: Connection, noisy: bool = True) -> Imperfection | None:
        """Way in which the backward pass reads the B of `connection`; None if exact. See `RuleState.imperfection`."""
        raise NotImplementedError

    def shared_matrix(self) -> Tensor:
        """The shared matrix (n_out, columns), of which each B of the layer is a slice."""
        holder = self.connections[0].holder
        matrix = None if holder is None else holder._buffers.get("shared_feedback")
        if matrix is None:
            raise RuntimeError(
                f"{self.label or type(self).__name__}: the shared feedback is gone, because the output layer that held "
                "it was converted or reverted without this layer: convert the whole network again"
            )
        return matrix


class Connection:
    """W and B of one connection. Most layers have one; attention has two or four, recurrent cells have two,
    recurrent layers two for each depth and direction.

    The tensors themselves are parameters and buffers of the layer, named after W, so that they are moved, saved and
    averaged like everything else in a network. All other state of the connection is here. B is a parameter if it
    learns from a gradient, and a buffer otherwise.

    Attributes:
        parameter: name of W within the layer: `weight`, `in_proj_weight`, `out_proj.weight` ...
        seed: seed of the randomness of B, used together with `updates`.
        updates: number of updates of W that have been settled since the conversion.
        answered: number of the last of them that B has answered, if the rule changes B after updates.
        parts: names of B's tensors: `("",)` if B is one tensor, the rule's names if there are several.
        columns: columns that make up B in the matrix that `holder` keeps for the whole network; None without one.
        holder: the layer that keeps this matrix.
        twin: an earlier connection with the same W and B, which keeps both up to date.

    Examples:
        >>> layer = biotorch.convert(nn.Linear(4, 3), "fa")
        >>> [(each.parameter, each.feedback.shape, each.updates) for each in layer.connections]
        [('weight', torch.Size([3, 4]), 0)]
    """

    def __init__(self, layer: Connected, parameter: str, seed: int) -> None:
        self._layer: weakref.ref[Connected] | None = weakref.ref(layer)
        self.parameter = parameter
        self.seed = seed if parameter == "weight" else _seeding.derive(seed, parameter)
        self.updates = self.answered = 0
        self.parts: tuple[str, ...] = ()
        self.columns: Slice | None = None
        self.holder: Connected | None = None
        self.twin: Connection | None = None
        self.follower: _Follower | None = None
        self.learner: _Learner | None = None
        self._frozen_with_weight: list[str] = []
        self.known_version = -1

    @property
    def layer(self) -> Connected:
        """The layer. It is held by a weak reference, because the layer keeps its connections alive."""
        found = None if self._layer is None else self._layer()
        if found is None:
            raise ReferenceError(f"the layer of this connection ({self.parameter}) no longer exists")
        return found

    def is_bound(self) -> bool:
        """Whether the connection belongs to a layer that still exists."""
        return self._layer is not None and self._layer() is not None

    def bind(self, layer: Connected) -> None:
        """Attach the connection to `layer`, a copy of the layer that it belonged to."""
        self._layer = weakref.ref(layer)

    @property
    def name(self) -> str:
        """The layer's name for messages, followed by W's name if the layer has several weight matrices."""
        label = self.layer.label or type(self.layer).__name__
        return label if self.parameter == "weight" else f"{label}.{self.parameter}"

    # W and B ---------------------------------------------------------------------------------------

    @property
    def trained(self) -> nn.Parameter:
        """W as the parameter itself, in the layout in which the layer keeps it."""
        found = self.layer.own_parameter(self.parameter)
        if found is None:
            raise AttributeError(f"{self.name}: its weight is computed from other tensors (pruning, a parametrization)")
        return found

    @property
    def is_computed(self) -> bool:
        """Whether W is computed from other tensors (pruning, a parametrization) and is not a parameter."""
        return self.layer.own_parameter(self.parameter) is None

    @property
    def is_sharded(self) -> bool:
        """Whether this process holds only a part of W (FSDP2) outside of a forward and backward pass."""
        return hasattr(self.weight if self.is_computed else self.trained, "full_tensor")

    @property
    def weight(self) -> Tensor:
        """W as (out, in, ...); a view if the layer keeps it in another layout."""
        self.settle(at_once=True)
        return self.layer.oriented(self.parameter)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors of B by part, without settling updates; empty if B is a slice of a shared matrix."""
        return self._tensors_in(self.layer)

    @property
    def learned(self) -> list[nn.Parameter]:
        """The tensors of B that are parameters, and so learn from gradients."""
        return [tensor for tensor in self.tensors.values() if isinstance(tensor, nn.Parameter)]

    @property
    def state(self) -> Any:
        """The rule's state for B: a tensor, a mapping of names to tensors, or None."""
        self.settle(at_once=True)
        return self.state_in(self.layer)

    def state_in(self, layer: nn.Module) -> Any:
        """The rule's state for B in `layer`, the layer itself or a replica with its own tensors, without settling."""
        return as_state(self._tensors_in(layer))

    def _tensors_in(self, layer: nn.Module) -> dict[str, Tensor]:
        names = {part: feedback_name(self.parameter, part) for part in self.parts}
        # Read directly, because attribute access settles updates; the tensors of a replica are plain attributes.
        own: dict[str, Any] = {**layer._buffers, **layer._parameters}
        return {part: own[name] if name in own else getattr(layer, name) for part, name in names.items()}

    @property
    def feedback(self) -> Tensor | None:
        """B, or the state from which the rule computes B; None if there is none."""
        if self.columns is not None:
            matrix = self.layer.shared_matrix()
            rows = matrix[:, : self.columns.size] * self.columns.scale
            return rows.view(len(matrix), *self.layer.projection_shape(self.parameter))
        state = self.state
        return self.effective_feedback if isinstance(state, Mapping) else state

    @property
    def feedback_shape(self) -> tuple[int, ...] | None:
        """Shape of B, without computing B."""
        if self.columns is not None:
            return (len(self.layer.shared_matrix()), *self.layer.projection_shape(self.parameter))
        if not self.parts:
            return None
        return tuple((self.tensors[""] if "" in self.parts else self.weight).shape)

    @property
    def effective_feedback(self) -> Tensor | None:
        """B in W's shape, as the backward pass reads it without noise; None under direct rules and `shallow`."""
        rule = self.layer.rule
        if isinstance(rule, FeedbackRule) and not rule.trains_output_only:
            with torch.no_grad():
                return read(rule.feedback(self.weight, self.state), self.layer.imperfection(self, noisy=False))
        return None

    # Updates ---------------------------------------------------------------------------------------

    @property
    def owner(self) -> Connection:
        """The connection that keeps B up to date: the twin while it keeps its rule, else this connection."""
        twin = self.twin
        return twin if twin is not None and twin.is_bound() and twin in twin.layer.connections else self

    def rejoin(self) -> None:
        """Share B's tensors with the twin again. Moving or casting a network makes separate buffers of shared ones."""
        if self.owner is self or self.learned:
            return
        for part, own in self.tensors.items():
            shared = self.owner.tensors[part]
            if own is not shared and (own.device, own.dtype) == (shared.device, shared.dtype):
                self.layer._buffers[feedback_name(self.parameter, part)] = shared

    @property
    def is_behind(self) -> bool:
        """Whether the rule has to change B for an update of W that was settled without need of B."""
        return self.answered < self.updates and self.layer.rule.has_update()

    def settle(self, at_once: bool = False) -> None:
        """Bring B, and the norm of W, up to date with the updates of W; see `_Follower.settle`."""
        follower = self.owner.follower
        if follower is not None and not torch.compiler.is_compiling():  # in a compiled graph `begin` has done it
            follower.settle(at_once=at_once)
            self.rejoin()

    def begin(self, training: bool, needed: bool = True) -> None:
        """Settle updates at the beginning of a forward pass, whose backward pass uses B if `needed`, and check B and W.

        Raises:
            RuntimeError: W is no longer a parameter, its updates cannot be seen, or B does not learn.
        """
        owner = self.owner
        if self.learner is None and owner.follower is None:
            return
        if self.is_computed:
            if training:
                raise RuntimeError(f"{self.name}: {self.layer.rule.needs_parameter}")
            return
        compiling = torch.compiler.is_compiling()
        if self.learner is not None and training and not compiling:
            self.learner.look()
        if owner.follower is not None and compiling:
            if not torch.compiler.is_exporting():  # an exported network is not trained
                owner.follower.settle_compiled(owner, training)
        elif owner.follower is not None:
            owner.follower.settle(training, needed=needed)
            self.rejoin()

    def freeze_with_weight(self) -> None:
        """Freeze a B that learns while W is frozen."""
        self.thaw_with_weight()
        if not self.trained.requires_grad:
            for part, tensor in self.tensors.items():
                if tensor.requires_grad:
                    tensor.requires_grad_(False)
                    self._frozen_with_weight.append(part)

    def thaw_with_weight(self) -> None:
        """Undo `freeze_with_weight` if W is no longer frozen."""
        if self._frozen_with_weight and self.trained.requires_grad:
            for part in self._frozen_with_weight:
                self.tensors[part].requires_grad_(True)
            self._frozen_with_weight = []

    def __getstate__(self) -> dict[str, Any]:
        # The copied layer binds the copy. The twin's layer may be missing there, so its seed and count are kept here.
        own = {key: getattr(self.owner, key) for key in ("seed", "updates", "answered")}
        return {**self.__dict__, **own, "_layer": None, "follower": None, "learner": None}
