"""What every feedback layer has in common: a rule, its feedback B, and which path the error takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from biotorch import seeding
from biotorch.autograd import Direct, Feedback, Operation, Output, uncompiled
from biotorch.layers import updates
from biotorch.rules import FeedbackRule, Rule, from_layer_config, initial

#: The feedback version of each torch layer type that converts; `register_layer` adds to it.
LAYER_TYPES: dict[type[nn.Module], type[FeedbackLayer]] = {}

_Layer = TypeVar("_Layer", bound="type[FeedbackLayer]")


def register_layer(torch_type: type[nn.Module]) -> Callable[[_Layer], _Layer]:
    """Class decorator: the feedback layer that `biotorch.convert` makes of exactly `torch_type`."""

    def add(layer_type: _Layer) -> _Layer:
        LAYER_TYPES[torch_type] = layer_type
        return layer_type

    return add


def is_feedback(name: str) -> bool:
    """Whether an entry of a state_dict belongs to a layer's feedback, rather than to the network."""
    return name.rpartition(".")[2] in ("feedback", "feedback_draws", "initial_norm")


class FeedbackLayer(nn.Module):
    """Mixin for a torch layer whose input gradient is decided by a learning rule.

    A concrete layer type is `class Linear(FeedbackLayer, nn.Linear)` and supplies `operation`. It is
    built like its torch class, plus keyword arguments; or `biotorch.convert` turns an existing torch
    layer into one in place, so that its identity, hooks, parameters and parents stay as they are.

    Keyword args of the constructor:
        rule: a rule's name or a `Rule` (default: the method of the import path, else
            `layer_config["type"]`, else `fa`).
        layer_config: `{"type": ..., "options": {...}}` as the first system took it; never changed.
        output_dim: size of the network's output, asked for by direct rules.
        output: whether this is the output layer, whose error direct rules broadcast; under any rule.
            Default: a direct layer is one if no other direct layer lies behind it.

    W is initialised by the rule's `init`. Raises ValueError for an unknown rule or option, or a direct
    rule without `output_dim`.
    """

    #: The rule of a per-method import path such as `biotorch.layers.usf`; None on the generic classes.
    method: ClassVar[str | None] = None

    weight: Tensor
    bias: Any
    rule: Rule
    #: B, or what the rule keeps of it; None where the rule has none.
    feedback: Tensor | None
    #: Inside `biotorch.true_gradients`: ordinary autograd.
    true_gradients: bool = False
    #: Set on the output layers of a network trained by a direct rule.
    output: Output | None = None
    #: The layer's dotted name at conversion, for error messages.
    label: str = ""

    def __init__(
        self,
        *args: Any,
        rule: str | Rule | None = None,
        layer_config: dict[str, Any] | None = None,
        output_dim: int | None = None,
        output: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(rule, Rule):
            named = layer_config.get("type") if isinstance(layer_config, Mapping) else None
            rule = from_layer_config(layer_config, rule or self.method or named or "fa")
        elif layer_config is not None:
            raise ValueError("give a finished rule or a layer_config, not both")
        seed = seeding.global_position()
        self.initialise_weights(rule, seed)
        if rule.direct and output_dim is None:
            raise ValueError(
                f"{type(self).__name__} under {rule.name!r} projects the network's error: "
                "give the size of the network's output as output_dim"
            )
        if output:
            self.output = Output(0, self.output_size)
        elif rule.direct and output is None:
            self.output = Output(0, output_dim or 0, inferred=True)
        self.set_rule(rule, seed, n_out=output_dim)

    # What a layer type supplies ------------------------------------------------------------------

    def operation(self, x: Tensor) -> tuple[Tensor, Operation]:
        """The input with a batch dimension, and the layer's linear map on it."""
        raise NotImplementedError

    @property
    def projection_shape(self) -> tuple[int, ...]:
        """Shape of one row of a direct rule's B: (C_in, *kernel_size)."""
        raise NotImplementedError

    @property
    def output_size(self) -> int:
        """Number of outputs per example and position: n_out where this is the output layer."""
        raise NotImplementedError

    # Rule and feedback ---------------------------------------------------------------------------

    def initialise_weights(self, rule: Rule, seed: int) -> None:
        """Draw W and b by the rule's `init`, from `seed` alone."""
        generator = seeding.generator(seeding.derive(seed, "weight"))
        initial.draw(self.weight, rule.init, generator)
        if self.bias is not None:
            initial.draw_bias(self.bias, self.weight, rule.init, generator)

    def set_rule(self, rule: Rule, seed: int, n_out: int | None = None, shared: Tensor | None = None) -> None:
        """Make `rule` the layer's rule and create its B, replacing what was there.

        `n_out` is the number of outputs a direct rule projects; `shared` is the B of another layer
        with the same W, used as it is.
        """
        self.rule = rule
        self.feedback_seed, self.feedback_draws = seed, 0
        for name in ("feedback", "initial_norm"):
            if hasattr(self, name):
                delattr(self, name)
        if rule.direct:
            assert n_out is not None
            blank = self.weight.new_empty((n_out, *self.projection_shape))
        else:
            blank = torch.empty_like(self.weight)
        if shared is None:
            generator = seeding.generator(seeding.derive(seed, "feedback", 0))
            shared = rule.initial_feedback(self.weight, blank.detach(), generator)
        self.register_buffer("feedback", shared)
        self._check_feedback(blank.shape)
        if rule.constrain_weights:
            self.register_buffer("initial_norm", self.weight.detach().norm())
        self._watch_updates()

    def _check_feedback(self, expected: torch.Size) -> None:
        """A rule of the user's own may return anything: tell it here, not deep in the first backward."""
        effective = self.feedback if self.rule.direct else self.effective_feedback
        if effective is None or effective.shape != expected:
            found = None if effective is None else tuple(effective.shape)
            raise ValueError(f"rule {self.rule.name!r} gives a B of shape {found}, needed here is {tuple(expected)}")

    def _watch_updates(self) -> None:
        updates.watch(self, wanted=self.rule.has_update() or self.rule.constrain_weights)

    @property
    def effective_feedback(self) -> Tensor | None:
        """B as the backward pass uses it, in the shape of W; None under a direct rule."""
        if isinstance(self.rule, FeedbackRule):
            with torch.no_grad():
                return self.rule.feedback(self.weight, self.feedback)
        return None

    def after_update(self, redraw: bool) -> None:
        """What follows an optimizer step (see `biotorch.layers.updates`).

        `redraw` is False after the step of an optimizer that wraps another: the rule has had its update
        after the inner step, but the weights may have changed again.
        """
        with torch.no_grad():
            if self.rule.constrain_weights:
                norm = self.weight.norm()
                self.weight.mul_(torch.where(norm > 0, self.initial_norm / norm, 1))
            if redraw and self.rule.has_update() and self.weight.grad is not None:
                self.feedback_draws += 1
                seed = seeding.derive(self.feedback_seed, "feedback", self.feedback_draws)
                self.rule.after_update(self.weight, self.feedback, seeding.generator(seed, self.weight.device))

    # Forward -------------------------------------------------------------------------------------

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not input.is_floating_point():
            raise TypeError(
                f"{self.label or type(self).__name__} takes a floating point input, got {input.dtype}: "
                "embed or cast it first"
            )
        if self.true_gradients or not torch.is_grad_enabled():
            return super().forward(input, *args, **kwargs)  # type: ignore[no-any-return]
        x, operation = self.operation(input, *args, **kwargs)
        walks_the_graph = self.rule.direct or self.output is not None
        y = self._apply_uncompiled(x, operation) if walks_the_graph else self._apply_rule(x, operation)
        return self.restore(y, input)

    def _apply_rule(self, x: Tensor, operation: Operation) -> Tensor:
        rule, operands = self.rule, (x, self.weight, self.bias, self.feedback, operation)
        y: Tensor
        if isinstance(rule, FeedbackRule):
            y = Feedback.apply(*operands, rule.feedback, rule.gradient_clip, self.output)
        else:
            y = Direct.apply(*operands, rule.gradient_clip, self.output, self.label or type(self).__name__)
        return y

    _apply_uncompiled = uncompiled(_apply_rule)

    def restore(self, y: Tensor, x: Tensor) -> Tensor:
        """Undo what `operation` did to the shape of `x` (a missing batch dimension)."""
        return y

    def extra_repr(self) -> str:
        inherited = super().extra_repr()
        return f"{inherited}, rule={self.rule.name}" if inherited else f"rule={self.rule.name}"

    # Saving --------------------------------------------------------------------------------------

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._watch_updates()  # a copied or unpickled layer follows its own optimizer

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.rule.has_update():
            # The next draw is determined by (seed, draws): with both, a resumed run draws the same.
            destination[prefix + "feedback_draws"] = torch.tensor([self.feedback_seed, self.feedback_draws])

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
        loaded = state_dict.get(prefix + "feedback")
        if loaded is not None and self.feedback is not None and loaded.shape != self.feedback.shape:
            error_msgs.append(
                f"{prefix}feedback: the loaded feedback is {tuple(loaded.shape)}, this layer's is "
                f"{tuple(self.feedback.shape)} under rule {self.rule.name!r}: convert with the rule, options "
                "and output size that the state was saved with."
            )
        if self.rule.has_update():
            key = prefix + "feedback_draws"
            if key in state_dict:
                self.feedback_seed, self.feedback_draws = (int(part) for part in state_dict[key])
                if key in unexpected_keys:
                    unexpected_keys.remove(key)
            elif strict:
                missing_keys.append(key)
