"""State that a layer keeps for its learning rule: its connections and the tensors of B."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from biotorch import _seeding
from biotorch.kernel.broadcast import Slice
from biotorch.kernel.imperfection import Imperfection, live_entries, next_draw
from biotorch.layers.connection import Connected, Connection
from biotorch.layers.learning import Learner
from biotorch.layers.reading import UseCheck, checks_of
from biotorch.layers.tensors import SHARED_BUFFERS, feedback_name, live_name, noisy_name, norm_name
from biotorch.layers.updates import Follower, tell_others
from biotorch.rules import DirectRule, RandomFeedback, Rule, initial


class RuleState(Connected):
    """A layer with a rule and the state that the rule needs; `SavedState` adds how it is saved."""

    #: The checks that W is used by this layer alone; None before its first use.
    use_checks: Sequence[UseCheck] | None = ()
    #: Names of B's tensors that left the meta device without values, until they are seen to have some.
    undrawn: Sequence[str] = ()

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
        self.rule, self.use_checks = rule, None
        self.connections = [Connection(self, name, seed) for name in self.weight_names]
        if at_point:
            self.at_point = True
        for connection in self.connections[: 1 if at_point else None]:
            if holder is not None:
                shape = torch.Size((n_out or 0, *self.projection_shape(connection.parameter)))
                assert isinstance(rule, DirectRule)
                scale = float(initial.scale(torch.empty(shape, device="meta"), rule.feedback_distribution))
                connection.holder = holder
                connection.columns = Slice(shape[1:].numel(), scale * rule.feedback_scale)
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
            keep_up(connection)

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
            if isinstance(rule, RandomFeedback):
                generator = _seeding.generator(_seeding.derive(connection.seed, "feedback density"))
                tensors = {part: rule.sized(tensor, generator) for part, tensor in tensors.items()}
        for part, tensor in tensors.items():
            name = feedback_name(connection.parameter, part)
            if rule.learns:
                self.register_parameter(name, nn.Parameter(tensor) if twin is None else tensor)  # type: ignore[arg-type]
            else:
                self.register_buffer(name, tensor)
        connection.parts = tuple(tensors)
        self.make_imperfect(connection.parameter, rule, blank, connection.owner.seed, connection.seed)
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
            names += [name(connection.parameter) for name in (norm_name, live_name, noisy_name)]
            for name in names:
                self._parameters.pop(name, None)
                self._buffers.pop(name, None)
        for name in (*SHARED_BUFFERS, "feedback_numbers"):
            self._buffers.pop(name, None)
            self._non_persistent_buffers_set.discard(name)
        for name in ("rule", "connections", "at_point", "use_checks", "undrawn"):
            self.__dict__.pop(name, None)

    def make_imperfect(self, parameter: str, rule: Rule, feedback: Tensor, seed: int, of_noise: int) -> None:
        """Create the buffers that `dead` and `noise` need for a B like `feedback`, named after `parameter`.

        They have a seed each, because layers with one B have the same dead entries, but noise of their own.
        """
        if rule.dead:
            generator = _seeding.generator(_seeding.derive(seed, "dead feedback"))
            self.register_buffer(live_name(parameter), live_entries(feedback.detach(), rule.dead, generator))
        if rule.noise:  # the seed, so that a network which loads a saved state goes on with the same noise
            self.register_buffer(noisy_name(parameter), torch.tensor([of_noise, 0], device=feedback.device))

    def imperfection(self, connection: Connection, noisy: bool = True) -> Imperfection | None:
        """Way in which the backward pass reads the B of `connection`, or the matrix that contains it; None if exact.

        With `noisy` it is the reading for one more use, whose noise nothing else uses.
        """
        rule = self.rule
        if not rule.is_imperfect:
            return None
        holder, named = (self, connection.parameter) if connection.columns is None else (connection.holder, "shared")
        own: Any = {} if holder is None else holder._buffers  # directly, because attribute access settles updates
        draw = next_draw(own[noisy_name(named)]) if rule.noise and noisy else None
        return Imperfection(rule.bits, own[live_name(named)] if rule.dead else None, rule.noise, draw)

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

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        # Python calls this for parameters and buffers, so that reading B, or a W whose norm is kept, gives them after
        # the last update.
        if "feedback" in name or ("weight" in name and self.connections and self.rule.constrain_weights):
            self.settle()
        if self.use_checks is None and name in self._parameters and torch.is_grad_enabled():
            self.use_checks = checks_of(self)
        return super().__getattr__(name)

    @property
    def feedback_draws(self) -> int:
        """Number of updates of W that the rule has answered since the conversion."""
        self.settle()
        return max(connection.owner.updates for connection in self.connections)


def keep_up(connection: Connection) -> None:
    """Start to track updates from now on, if the rule needs it."""
    rule = connection.layer.rule
    connection.follower = connection.learner = None
    if rule.has_update() or rule.constrain_weights:
        connection.follower = Follower(connection)
    if connection.learned:
        connection.learner = Learner(connection)
