"""What a layer keeps for its learning rule: B of every weight matrix, its seeds, and how they are saved."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from biotorch import seeding
from biotorch.broadcast import Slice
from biotorch.layers import updates
from biotorch.layers.connection import Connection, descent_prefix, feedback_name, norm_name
from biotorch.layers.descent import descend, from_saved, to_save
from biotorch.rules import Rule, Update, initial


class RuleState(nn.Module):
    """A layer with a rule and the state it needs; `FeedbackLayer` adds how the error is carried."""

    #: The parameters that are weight matrices, each with a B of its own.
    weight_names: Sequence[str] = ("weight",)
    rule: Rule
    #: The layer's dotted name at conversion, for error messages.
    label: str = ""
    #: The part of a shared matrix that is the B of a parameter, where one is, and the layer that holds the matrix
    #: (in a tuple: it is no submodule).
    feedback_columns: Mapping[str, Slice] = {}
    shared_from: tuple[RuleState, ...] = ()
    #: Whether the layer is the first of a block at whose input a direct rule's error arrives: it has one B, for that.
    at_point: bool = False
    #: Whether the processes of a DDP training add their gradients up, as runs do, instead of averaging them.
    sums_gradients: bool = False
    #: By weight matrix, what the optimizer of its B keeps. No buffers: those of a network do not change in number.
    feedback_states: Mapping[str, dict[str, Any]] = {}
    #: The weights on which an optimizer has begun a step.
    _begun: Mapping[str, updates.Begun] = {}

    @property
    def connections(self) -> list[Connection]:
        """Each weight matrix with its B."""
        return [Connection(self, parameter) for parameter in self.weight_names]

    def orient(self, matrix: Tensor) -> Tensor:
        """A parameter, or its gradient, as (out, in, ...), as rules and operations see it; a view."""
        return matrix

    def oriented(self, parameter: str) -> Tensor:
        """A weight as (out, in, ...)."""
        return self.orient(getattr(self, parameter))

    def projection_shape(self, parameter: str = "weight") -> tuple[int, ...]:
        """Shape of one row of a direct rule's B: the input features, (C_in, *kernel_size) for a convolution."""
        return tuple(self.oriented(parameter).shape[1:])

    def set_rule(
        self,
        rule: Rule,
        seed: int,
        n_out: int | None = None,
        twins: Mapping[str, Connection] | None = None,
        dense: tuple[int, ...] | None = None,
        shared_from: RuleState | None = None,
        at_point: bool = False,
    ) -> None:
        """Make `rule` the layer's rule and create its B, replacing what was there.

        Args:
            n_out: number of outputs that a direct rule projects.
            twins: connections of other layers with the same W, whose B is used as it is.
            dense: shape of a row of a dense B.
            shared_from: the layer that holds the matrix of which every B is a slice.
            at_point: B is for the input of the block that begins with the layer.
        """
        self.forget_rule()
        self.rule = rule
        self.feedback_seeds = {
            name: seed if name == "weight" else seeding.derive(seed, name) for name in self.weight_names
        }
        self.feedback_draws = 0
        if at_point:
            self.at_point = True
        if shared_from is not None:
            self.shared_from = (shared_from,)
            distribution = rule.feedback_distribution
            shapes = {name: torch.Size((n_out or 0, *self.projection_shape(name))) for name in self.weight_names}
            self.feedback_columns = {
                name: Slice(shape[1:].numel(), float(initial.scale(torch.empty(shape, device="meta"), distribution)))
                for name, shape in shapes.items()
            }
        for connection in self.connections[: 1 if at_point else None]:
            self._create_feedback(connection, n_out, (twins or {}).get(connection.parameter), dense)
        self._watch_updates()

    def _create_feedback(
        self, connection: Connection, n_out: int | None, twin: Connection | None, dense: tuple[int, ...] | None
    ) -> None:
        rule, name = self.rule, connection.parameter
        if rule.direct:
            assert n_out is not None
            blank = connection.weight.new_empty((n_out, *(dense or self.projection_shape(name))))
        else:
            own = connection.weight is connection.trained  # a view's strides are not B's
            blank = torch.empty_like(connection.weight) if own else connection.weight.new_empty(connection.weight.shape)
        feedback = None
        if twin is not None:
            feedback = twin.buffer
            self.feedback_seeds[name] = twin.layer.feedback_seeds[twin.parameter]
        elif name not in self.feedback_columns:
            generator = seeding.generator(seeding.derive(self.feedback_seeds[name], "feedback", 0))
            feedback = rule.initial_feedback(connection.weight, blank.detach(), generator)
        self.register_buffer(feedback_name(name), feedback)
        if name not in self.feedback_columns:
            self._check_feedback(connection, blank.shape)
        if rule.constrain_weights:
            self.register_buffer(norm_name(name), connection.weight.detach().norm())

    def _check_feedback(self, connection: Connection, expected: torch.Size) -> None:
        """A rule of the user's own may return anything: tell it here, not deep in the first backward."""
        if self.rule.trains_output_only:
            return
        effective = connection.buffer if self.rule.direct else connection.effective_feedback
        if effective is None or effective.shape != expected:
            found = None if effective is None else tuple(effective.shape)
            raise ValueError(f"rule {self.rule.name!r} gives a B of shape {found}, needed here is {tuple(expected)}")
        if connection.buffer is None and self.rule.has_update():
            raise ValueError(f"rule {self.rule.name!r} learns and has no B: initial_feedback returns None")

    def forget_rule(self) -> None:
        """Take out everything that belongs to a rule."""
        for parameter in self.weight_names:
            for name in (feedback_name(parameter), norm_name(parameter)):
                if name in self._buffers:
                    delattr(self, name)
        if "shared_feedback" in self._buffers:
            del self.shared_feedback
        own = ("rule", "feedback_seeds", "feedback_draws", "feedback_columns", "shared_from", "at_point")
        for name in (*own, "feedback_states", "_begun"):
            self.__dict__.pop(name, None)
        updates.watch(self, wanted=False)

    @property
    def shared_matrix(self) -> Tensor:
        """The matrix (n_out, columns) of which the layer's B are slices."""
        matrix = self.shared_from[0]._buffers.get("shared_feedback")
        if matrix is None:
            raise RuntimeError(
                f"{self.label or type(self).__name__}: the output layer that held the shared feedback was converted or "
                "reverted without this layer: convert the whole network again"
            )
        return matrix

    def _watch_updates(self) -> None:
        updates.watch(self, wanted=self.rule.has_update() or self.rule.constrain_weights)

    @property
    def effective_feedback(self) -> Tensor | None:
        """B as the backward pass uses it, in the shape of W; None under a direct rule."""
        return self.connections[0].effective_feedback

    # Updates -------------------------------------------------------------------------------------

    def listening(self, parameter: str, feedback: Tensor) -> Tensor:
        """B for one forward pass; what the backward finds for it is added up on the buffer, as its `.grad`."""
        in_backward = torch._C._current_graph_task_id() != -1  # checkpointing runs the forward again there
        if self.get_parameter(parameter).grad is None and not in_backward:
            feedback.grad = None  # left over from a step that was never made
        leaf = feedback.detach().requires_grad_()
        leaf.register_post_accumulate_grad_hook(functools.partial(_add_to, feedback))  # type: ignore[no-untyped-call]
        return leaf

    def before_update(self, step: updates.Step) -> None:
        """An optimizer is going to step on these weights."""
        if not self.rule.has_update():
            return
        begun = {}
        for connection in step.held(self.connections):
            name, gradient = connection.parameter, connection.trained.grad
            # Under `super().step()` this is the second call, and the gradient may be edited already.
            known = name in self._begun and gradient is not None and self._begun[name].source is gradient
            begun[name] = self._begun[name] if known else step.begin(connection)
        self._begun = begun

    def after_update(self, step: updates.Step) -> None:
        """What follows an optimizer step (see `biotorch.layers.updates`)."""
        # Optimizers within optimizers call this once more for the same step: what was expected has happened then.
        begun, self._begun = self._begun, {}
        with torch.no_grad():
            factors = {each.parameter: self._constrain(each) for each in self.connections}
            if not self.rule.has_update():
                return
            known = [(each, begun[each.parameter]) for each in step.held(self.connections) if each.parameter in begun]
            # A hook of the optimizer's may have cleared gradients after the step.
            updated = [(each, at) for each, at in known if at.gradient is not None or each.gradient is not None]
            self.feedback_draws += bool(updated)
            for connection, at in updated:
                # Those that share W share B. Every layer takes what was found for it, so that processes agree.
                update = self._update(connection, step, at, factors[connection.parameter])
                if connection.buffer is None or step.first_to_update(connection.buffer):
                    self.rule.after_update(update)

    def _constrain(self, connection: Connection) -> Tensor | float:
        """Rescale W to the norm that it started with, where the rule asks for it; returns the factor."""
        if not self.rule.constrain_weights:
            return 1.0
        norm, wanted = connection.weight.norm(), self._buffers[norm_name(connection.parameter)]
        factor = torch.where(norm > 0, wanted / norm, 1)
        connection.trained.mul_(factor)
        return factor

    def _update(
        self, connection: Connection, step: updates.Step, begun: updates.Begun, rescaled: Tensor | float
    ) -> Update:
        """What the rule sees of the step."""
        name, weight = connection.parameter, connection.weight
        feedback = weight.new_empty(0) if connection.buffer is None else connection.buffer
        seed = seeding.derive(self.feedback_seeds[name], "feedback", self.feedback_draws)
        asked = self.rule.observes_product
        return Update(
            weight,
            feedback,
            lambda: seeding.generator(seed, weight.device),
            layer=self.label,
            number=self.feedback_draws,
            rate=step.rate(connection.trained),
            decay=step.decay(connection.trained),
            # After the step it may hold what the optimizer made of it: with a decay W would get into B.
            gradient=connection.gradient if begun.gradient is None else self.orient(begun.gradient),
            product=updates.over_processes(feedback, self.sums_gradients) if asked else None,
            rescaled=rescaled,
            groups=getattr(self, "groups", 1),
            descend=functools.partial(self._descend, connection, step, begun),
        )

    def _descend(
        self, connection: Connection, step: updates.Step, begun: updates.Begun, gradient: Tensor, **settings: float
    ) -> None:
        """Step B by an optimizer like W's, and keep its state."""
        assert connection.buffer is not None
        name = connection.parameter
        kept = self.feedback_states.get(name, {})
        if not step.continues(connection, kept, begun):
            kept = {}
        group = {**step.groups[id(connection.trained)], **settings}
        state = descend(step.optimizer, group, connection.buffer, gradient, kept)
        self.feedback_states = {**self.feedback_states, name: state}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for state in self.feedback_states.values():
            state |= {key: fn(value) for key, value in state.items() if isinstance(value, Tensor) and key != "step"}
        return self

    # Saving --------------------------------------------------------------------------------------

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._watch_updates()  # a copied or unpickled layer follows its own optimizer

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.rule.has_update():
            # The next draw is determined by (seed, draws): with both, a resumed run draws the same.
            seeds = [self.feedback_seeds[name] for name in self.weight_names]
            destination[prefix + "feedback_draws"] = torch.tensor([*seeds, self.feedback_draws])
            for parameter, state in self.feedback_states.items():
                for key, value in state.items():
                    if value is not None:
                        destination[prefix + descent_prefix(parameter) + key] = to_save(key, value)

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
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        for name in [feedback_name(parameter) for parameter in self.weight_names] + ["shared_feedback"]:
            loaded, own = state_dict.get(prefix + name), self._buffers.get(name)
            if loaded is not None and own is not None and loaded.shape != own.shape:
                error_msgs.append(
                    f"{prefix}{name}: the loaded feedback is {tuple(loaded.shape)}, this layer's is "
                    f"{tuple(own.shape)} under rule {self.rule.name!r}: convert with the rule, options "
                    "and output size that the state was saved with."
                )
        if self.rule.has_update():
            self._load_states(state_dict, prefix, unexpected_keys)
            key = prefix + "feedback_draws"
            if key in state_dict:
                *seeds, self.feedback_draws = (int(part) for part in state_dict[key])
                self.feedback_seeds.update(zip(self.weight_names, seeds, strict=True))
                if key in unexpected_keys:
                    unexpected_keys.remove(key)
            elif strict:
                missing_keys.append(key)

    def _load_states(self, state_dict: Mapping[str, Any], prefix: str, unexpected_keys: list[str]) -> None:
        """Take what a state has of the optimizers of B, and nothing else."""
        updates.disown(self)
        states = {}
        for connection in self.connections:
            begin, feedback = prefix + descent_prefix(connection.parameter), connection.buffer
            if feedback is not None:
                found = [key for key in state_dict if key.startswith(begin)]
                names = [key.removeprefix(begin) for key in found]
                states[connection.parameter] = {
                    name: from_saved(name, state_dict[begin + name], feedback) for name in names
                }
                unexpected_keys[:] = [key for key in unexpected_keys if key not in found]
        self.feedback_states = states


def _add_to(feedback: Tensor, leaf: Tensor) -> None:
    """Move the gradient that a backward pass left on `leaf` to the buffer it stands for."""
    assert leaf.grad is not None
    feedback.grad = leaf.grad if feedback.grad is None else feedback.grad + leaf.grad
    leaf.grad = None
