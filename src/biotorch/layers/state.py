"""State that a layer keeps for its learning rule: its connections and the tensors of B, and how they are saved."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from biotorch import _seeding
from biotorch.kernel.broadcast import Slice
from biotorch.layers.connection import Connected, Connection
from biotorch.layers.learning import Learner
from biotorch.layers.tensors import feedback_name, is_feedback, norm_name
from biotorch.layers.updates import Follower, tell_others
from biotorch.rules import Rule, initial


class RuleState(Connected):
    """A layer with a rule and the state that the rule needs; `FeedbackLayer` adds the backward pass."""

    def set_rule(
        self,
        rule: Rule,
        seed: int,
        n_out: int | None = None,
        twins: Mapping[str, Connection] | None = None,
        dense: tuple[int, ...] | None = None,
        holder: Connected | None = None,
        at_point: bool = False,
    ) -> None:
        """Make `rule` the layer's rule and create its B, replacing an earlier rule.

        Args:
            rule: the rule.
            seed: seed of B.
            n_out: number of network outputs that a direct rule projects.
            twins: connections of other layers with the same W, by parameter name; their B is used.
            dense: shape of one row of a dense B.
            holder: the layer that holds the shared matrix of which every B is a slice.
            at_point: whether B serves only the input of the block that begins with this layer.

        Raises:
            ValueError: W is sharded, the rule returns a B of the wrong shape, or it learns but returns no B.
        """
        self.forget_rule()
        self.rule = rule
        self.connections = [Connection(self, name, seed) for name in self.weight_names]
        if at_point:
            self.at_point = True
        for connection in self.connections[: 1 if at_point else None]:
            if holder is not None:
                shape = torch.Size((n_out or 0, *self.projection_shape(connection.parameter)))
                scale = initial.scale(torch.empty(shape, device="meta"), rule.feedback_distribution)
                connection.holder, connection.columns = holder, Slice(shape[1:].numel(), float(scale))
            else:
                self._create_feedback(connection, n_out, (twins or {}).get(connection.parameter), dense)
            if rule.constrain_weights:
                self.register_buffer(norm_name(connection.parameter), connection.weight.detach().norm())
            if not connection.parts:
                self.register_buffer(feedback_name(connection.parameter), None)
        if rule.has_update():
            digits = self.connections[0].trained.new_zeros(len(self.connections), 15).detach()
            self.register_buffer("feedback_numbers", digits, persistent=False)
            for connection in self.connections:
                tell_others(connection)
        for connection in self.connections:
            _keep_up(connection)

    def _create_feedback(
        self, connection: Connection, n_out: int | None, twin: Connection | None, dense: tuple[int, ...] | None
    ) -> None:
        rule, weight = self.rule, self.oriented(connection.parameter)
        if connection.is_sharded:
            raise ValueError(
                f"{connection.name}: its weight is already sharded: convert the network first, then call fully_shard"
            )
        if rule.direct:
            assert n_out is not None
            blank = weight.new_empty((n_out, *(dense or self.projection_shape(connection.parameter))))
        else:
            own = weight is getattr(self, connection.parameter, None)  # B must not take the strides of a view
            blank = torch.empty_like(weight) if own else weight.new_empty(weight.shape)
        if twin is not None:
            connection.twin, tensors = twin.owner, twin.tensors
        else:
            generator = _seeding.generator(_seeding.derive(connection.seed, "feedback", 0))
            found = rule.initial_feedback(weight, blank.detach(), generator)
            tensors = {} if found is None else dict(found) if isinstance(found, Mapping) else {"": found}
        for part, tensor in tensors.items():
            name = feedback_name(connection.parameter, part)
            if rule.learns:
                self.register_parameter(name, nn.Parameter(tensor) if twin is None else tensor)  # type: ignore[arg-type]
            else:
                self.register_buffer(name, tensor)
        connection.parts = tuple(tensors)
        self._check_feedback(connection, blank.shape)

    def _check_feedback(self, connection: Connection, expected: torch.Size) -> None:
        """Check the B of a user's rule, so that a mistake is not found only in the first backward pass."""
        if self.rule.trains_output_only:
            return
        rule = f"{connection.name}: rule {self.rule.name!r}"
        effective = connection.feedback if self.rule.direct else connection.effective_feedback
        if effective is None or effective.shape != expected:
            found = None if effective is None else tuple(effective.shape)
            raise ValueError(f"{rule} gives a B of shape {found}, but this layer needs {tuple(expected)}")
        if not connection.parts and (self.rule.has_update() or self.rule.learns):
            raise ValueError(f"{rule} changes B but has none: its initial_feedback returns None")

    def forget_rule(self) -> None:
        """Remove the rule and all state that belongs to it."""
        for connection in self.connections:
            names = [feedback_name(connection.parameter, part) for part in ("", *connection.parts)]
            for name in (*names, norm_name(connection.parameter)):
                self._parameters.pop(name, None)
                self._buffers.pop(name, None)
        for name in ("shared_feedback", "feedback_numbers"):
            self._buffers.pop(name, None)
            self._non_persistent_buffers_set.discard(name)
        for name in ("rule", "connections", "at_point"):
            self.__dict__.pop(name, None)

    def connection(self, parameter: str) -> Connection:
        """The connection of a weight matrix, by the parameter's name."""
        for each in self.connections:
            if each.parameter == parameter:
                return each
        raise KeyError(f"{type(self).__name__} has no weight matrix {parameter!r}")

    @property
    def effective_feedback(self) -> Tensor | None:
        """B as the backward pass uses it, in the shape of W; None under a direct rule."""
        return self.connections[0].effective_feedback

    def settle(self, at_once: bool = False) -> None:
        """Bring W and B of every connection up to date with the updates of W; see `Follower.settle`."""
        for connection in self.connections:
            connection.settle(at_once)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters as in torch. The B of a frozen W is frozen first, because DDP would wait for its gradient."""
        for connection in self.connections:
            if connection.learned and not connection.is_computed:
                connection.freeze_with_weight()
        return super().named_parameters(prefix, recurse, remove_duplicate)

    # Saving --------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        self.settle(at_once=True)
        return {**super().__getstate__()}  # type: ignore[no-untyped-call]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if "rule" in state and "connections" not in state:
            raise RuntimeError("the network was pickled by an earlier version of biotorch: load its state_dict instead")
        if any(connection.is_bound() for connection in self.connections):  # a shallow copy has the original's
            self.connections = [copy.copy(connection) for connection in self.connections]
        for connection in self.connections:
            connection.bind(self)
        for connection in self.connections:
            _keep_up(connection)

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        # Python calls this for parameters and buffers, so that reading W or B gives them after the last update.
        if "feedback" in name or "weight" in name:
            self.settle()
        return super().__getattr__(name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._overlook()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for connection in self.connections:
            connection.rejoin()
        return self

    def _overlook(self) -> None:
        """Settle all earlier updates, and do not count the coming change of W as an update."""
        self.settle(at_once=True)
        for connection in self.connections:
            if connection.follower is not None:
                connection.follower.overlook = True

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self.settle(at_once=True)
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.rule.has_update():
            # Seed and number determine the next draw, so a resumed run draws the same.
            seeds, numbers = zip(*((each.owner.seed, each.owner.updates) for each in self.connections), strict=True)
            told = numbers[: 1 if len(set(numbers)) == 1 else None]
            destination[prefix + "feedback_draws"] = torch.tensor([*seeds, *told])

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        self._overlook()
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        own = {name: tensor for name, tensor in {**self._parameters, **self._buffers}.items() if is_feedback(name)}
        for name, tensor in own.items():
            loaded = state_dict.get(prefix + name)
            if loaded is not None and tensor is not None and loaded.shape != tensor.shape:
                error_msgs.append(
                    f"{prefix}{name}: the loaded feedback has shape {tuple(loaded.shape)}, but this layer's has "
                    f"{tuple(tensor.shape)} under rule {self.rule.name!r}: convert with the rule, options "
                    "and output size that the state was saved with."
                )
        # Earlier versions kept the momenta of an own optimizer for B; they are ignored.
        key, gone = prefix + "feedback_draws", [f"{prefix}{feedback_name(each)}_state_" for each in self.weight_names]
        known = self.rule.learns or self.rule.has_update()
        unexpected_keys[:] = [
            each for each in unexpected_keys if not known or not (each == key or each.startswith(tuple(gone)))
        ]
        if self.rule.has_update() and key in state_dict:
            draws, count = state_dict[key].tolist(), len(self.connections)
            if len(draws) in (count + 1, 2 * count):
                self._load_draws(draws)
            else:
                error_msgs.append(
                    f"{key}: the saved layer has another number of weight matrices; this layer has {count}"
                )
        elif self.rule.has_update() and strict:
            missing_keys.append(key)

    def _load_draws(self, draws: list[int]) -> None:
        count = len(self.connections)
        numbers = draws[count:] * (count if len(draws) == count + 1 else 1)
        for connection, seed, number in zip(self.connections, draws, numbers, strict=False):
            connection.seed, connection.updates = seed, number
            tell_others(connection)

    @property
    def feedback_draws(self) -> int:
        """Number of updates of W that the rule has answered since the conversion."""
        self.settle()
        return max(connection.owner.updates for connection in self.connections)


def _keep_up(connection: Connection) -> None:
    """Start to track updates from now on, if the rule needs it."""
    rule = connection.layer.rule
    connection.follower = connection.learner = None
    if rule.has_update() or rule.constrain_weights:
        connection.follower = Follower(connection)
    if connection.learned:
        connection.learner = Learner(connection)
