"""Base class of the feedback layers: a rule, its feedback B, and the path that the error takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn

from biotorch import _seeding
from biotorch.kernel.broadcast import Network, Output, Receiver
from biotorch.kernel.functions import Cut, Direct, Feedback
from biotorch.kernel.projection import Operation
from biotorch.layers.connection import Connection
from biotorch.layers.saving import SavedState
from biotorch.layers.tracing import as_leaf, is_traced, require_autograd
from biotorch.rules import DirectRule, FeedbackRule, Rule, from_layer_config, initial


class FeedbackLayer(SavedState):
    """Mixin for a torch layer whose input gradient is computed by a learning rule.

    A concrete layer type is `class Linear(FeedbackLayer, nn.Linear)` and supplies `operation`. It is
    built like its torch class, with more keyword arguments. `biotorch.convert` can also turn an existing torch
    layer into one in place, so that its identity, hooks, parameters and parents stay as they are.

    Keyword args of the constructor:
        rule: a rule's name or a `Rule` (default: the rule of the import path, else
            `layer_config["type"]`, else `fa`).
        layer_config: `{"type": ..., "options": {...}}` as in the first system; it is never changed.
        output_dim: size of the network's output, which direct rules need.
        output: whether this is the output layer, whose error direct rules broadcast; allowed under any rule.
            Default: a direct layer is the output layer if no other direct layer lies behind it.

    W is initialised by the rule's `init`.

    Raises:
        ValueError: the rule or an option is unknown, or a direct rule has no `output_dim`.

    Examples:
        >>> model = biotorch.convert(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), "fa")
        >>> [isinstance(each, biotorch.layers.FeedbackLayer) for each in model]
        [True, False]
    """

    #: The rule of an import path such as `biotorch.layers.usf`; None on the generic classes.
    method: ClassVar[str | None] = None
    #: The torch type that converts to this type.
    torch_type: ClassVar[type[nn.Module]]
    #: Submodules whose parameters this layer reads itself. They belong to it and are never called.
    owned: ClassVar[tuple[str, ...]] = ()

    weight: Tensor
    bias: Any
    #: Whether the layer uses ordinary autograd, as inside `biotorch.true_gradients`.
    true_gradients: bool = False
    #: The mark of the output layers of a network with a direct rule; None on other layers.
    output: Output | None = None
    #: The network that the layer was converted with, whose outputs it hears under a direct rule; None if built by hand.
    network: Network | None = None
    #: Index of the batch dimension in the input: 1 in time-major transformers.
    batch_dim: int = 0

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
            raise ValueError("give either a Rule object or a layer_config, not both")
        if (obstacle := self.obstacle(self)) != "":
            raise ValueError(f"{type(self).__name__} has no feedback version with these arguments: {obstacle}")
        if rule.needs_network:
            raise ValueError(f"{rule.needs_network} needs a whole network: use biotorch.convert")
        seed = _seeding.global_position()
        self.initialise_weights(rule, seed)
        if rule.direct and output_dim is None:
            raise ValueError(
                f"{type(self).__name__} under {rule.name!r} projects the error of the network's output: "
                "give the size of that output as output_dim"
            )
        if output:
            self.output = Output(0, self.require_output_size())
        elif rule.direct and output is None and self.output_size is not None:
            self.output = Output(0, output_dim or 0, inferred=True)
        self.set_rule(rule, seed, n_out=output_dim)

    # Methods of a layer type ----------------------------------------------------------------------

    def operation(self, x: Tensor) -> tuple[Tensor, Operation]:
        """Return the input with a batch dimension, and the layer's linear map for it."""
        raise NotImplementedError(f"{type(self).__name__} must define operation(x), or a forward of its own")

    def entry(self, x: Tensor) -> Operation:
        """The operation that reads `x`, for a block that begins with this layer and lets no gradient out.

        Raises:
            RuntimeError: the layer has no B that belongs to a single input.
        """
        return self.operation(x)[1]

    @property
    def output_size(self) -> int | None:
        """Number of outputs per example and position; None for a layer that cannot be the output layer."""
        return self.oriented("weight").shape[0]

    @classmethod
    def obstacle(cls, layer: nn.Module) -> str:
        """The reason why a layer of exactly `torch_type` cannot be converted; empty if it can."""
        dtype = next((each.dtype for each in layer.parameters() if each.dtype.is_complex), None)
        return "" if dtype is None else f"its weights are complex ({dtype}), and the rules are defined for real ones"

    def dense_size(self, x: Tensor) -> tuple[int, ...] | None:
        """Shape of one row of a dense B for inputs like `x`; None if the usual B is already dense."""
        return None

    def set_rule(self, rule: Rule, *arguments: Any, **options: Any) -> None:
        super().set_rule(rule, *arguments, **options)
        _leave_out_of_graphs(rule)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "rule" in state:
            _leave_out_of_graphs(state["rule"])

    # Rule and feedback ---------------------------------------------------------------------------

    def require_output_size(self) -> int:
        """The layer's `output_size`; raises ValueError if it has none."""
        if self.output_size is None:
            raise ValueError(
                f"{type(self).__name__} cannot be the output layer: its output is not an affine map of its input"
            )
        return self.output_size

    def initialise_weights(self, rule: Rule, seed: int) -> None:
        """Draw W and b by the rule's `init`, from `seed` alone."""
        generator = _seeding.generator(_seeding.derive(seed, "weight"))
        weights = [self.oriented(name) for name in self.weight_names]
        for weight in weights:
            initial.draw(weight, rule.init, generator)
        for name, parameter in self.named_parameters():
            if "bias" in name:
                initial.draw_bias(parameter, weights[0], rule.init, generator)

    # Forward -------------------------------------------------------------------------------------

    @property
    def plain(self) -> bool:
        """Whether a forward pass would now be plain PyTorch, because no gradient or the true gradient is wanted."""
        return self.true_gradients or not torch.is_grad_enabled()

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        if is_traced(input):
            return as_leaf(self, input, *args, **kwargs)
        self.require_floating(input)
        if self.plain:
            self.begin_plain()
            return super().forward(input, *args, **kwargs)
        x, operation = self.operation(input, *args, **kwargs)
        return self.restore(self.carry("weight", x, self.bias, operation), input)

    def begin_plain(self) -> None:
        """Bring W up to date if the rule keeps its norm. A plain forward pass uses nothing else of the rule."""
        if self.use_checks and torch.is_grad_enabled():
            self.use_checks = ()  # the layer itself now uses W as plain torch does
        if self.rule.constrain_weights:
            for connection in self.connections:
                connection.begin(training=False)

    def require_floating(self, input: Tensor) -> None:
        """Raise TypeError for an input that is not floating point, which can have no gradient."""
        if not input.is_floating_point():
            raise TypeError(
                f"{self.label or type(self).__name__} takes a floating point input, got {input.dtype}: "
                "embed or cast it first"
            )

    def carry(self, parameter: str, x: Tensor, bias: Tensor | None, operation: Operation) -> Tensor:
        """Apply `operation` to `x` with the weight `parameter`; in the backward the rule computes dx."""
        connection = self.connection(parameter)
        require_autograd(connection, x)
        if x.is_nested:
            return self.carry_nested(parameter, x, bias, operation)
        if self.undrawn:
            self.require_drawn()
        connection.begin(self.training, needed=x.requires_grad)
        walks_the_graph = self.rule.direct or self.output is not None
        carry = self._carry_uncompiled if walks_the_graph else self._carry
        return carry(self.oriented(parameter), connection, x, bias, operation)

    def carry_nested(self, parameter: str, x: Tensor, bias: Tensor | None, operation: Operation) -> Tensor:
        """`carry` for a nested tensor, where each example has a length of its own.

        Raises:
            TypeError: the layer takes no nested tensors, or only others.
        """
        raise TypeError(
            f"{self.label or type(self).__name__}: a {self.torch_type.__name__} under a rule takes no nested tensors: "
            "pad the examples, x.to_padded_tensor(0.0), and mask the padding"
        )

    def _carry(
        self, weight: Tensor, connection: Connection, x: Tensor, bias: Tensor | None, operation: Operation
    ) -> Tensor:
        rule = self.rule
        y: Tensor
        if self.at_point:  # B serves only the input of the block; inside it gradients go by backpropagation
            y = Feedback.apply(x, weight, bias, None, operation, _weight_itself, rule.gradient_clip, self.output)
        elif isinstance(rule, FeedbackRule):
            state, feedback = connection.state_in(self), rule.feedback
            if isinstance(state, dict):  # made into one B here, so that autograd gives each tensor its gradient
                state, feedback = rule.feedback(weight.detach(), state), _state_itself
            if state is not None and not (weight.requires_grad and state.requires_grad):  # a frozen W freezes its B
                state = state.detach() if x.requires_grad else None  # or the backward pass uses none
            distorted = self.imperfection(connection) if x.requires_grad else None
            y = Feedback.apply(x, weight, bias, state, operation, feedback, rule.gradient_clip, self.output, distorted)
        else:
            state = self.projector(connection, x)
            state = state if weight.requires_grad else state.detach()
            y = Direct.apply(x, weight, bias, state, operation, self.output, self.receiver(connection))
        return y

    #: `_carry`, and outside of compiled graphs from the first layer under a direct rule on: there it walks the graph.
    _carry_uncompiled = _carry

    def cut(self, x: Tensor) -> Tensor:
        """The input `x` of the block that begins with this layer, cut off from gradients except by the layer's B."""
        first, operation = self.connections[0], self.entry(x)
        y: Tensor = Cut.apply(x, self.projector(first, x).detach(), operation, self.receiver(first))
        return y

    def projector(self, connection: Connection, x: Tensor) -> Tensor:
        """B under a direct rule, or the shared matrix that contains it, on the device of `x`."""
        if connection.columns is not None:
            return self.shared_matrix().to(x.device)
        return connection.state_in(self)  # type: ignore[no-any-return]

    def receiver(self, connection: Connection) -> Receiver:
        """Settings with which the layer receives the error under a direct rule."""
        rule = self.rule
        label, network, clip = self.label or type(self).__name__, self.network, rule.gradient_clip
        signal = rule.signal if isinstance(rule, DirectRule) and rule.has_signal() else None
        dense = isinstance(rule, DirectRule) and rule.feedback == "dense"
        given = () if network is None else network.given
        imperfection = self.imperfection(connection)
        return Receiver(label, connection.columns, signal, clip, dense, network, given, imperfection)

    def restore(self, y: Tensor, x: Tensor) -> Tensor:
        """Undo the change of shape that `operation` made to `x` (an added batch dimension)."""
        return y

    # Other ways out of a network -----------------------------------------------------------------

    @property
    def qconfig(self) -> object:
        raise AttributeError("a feedback layer has no quantization settings")

    @qconfig.setter
    def qconfig(self, value: object) -> None:
        # Every function of torch.ao.quantization sets this on every layer, and then replaces the types that it knows.
        raise RuntimeError(
            f"{self.label or type(self).__name__}: torch.ao.quantization does not know feedback layers and would skip "
            "them: quantize an ordinary network, biotorch.revert(copy.deepcopy(model))"
        )

    def __prepare_scriptable__(self) -> NoReturn:
        raise RuntimeError(
            f"{self.label or type(self).__name__}: torch.jit.script cannot compile a feedback layer: script an "
            "ordinary network, biotorch.revert(copy.deepcopy(model))"
        )

    def extra_repr(self) -> str:
        inherited = super().extra_repr()
        return f"{inherited}, rule={self.rule.name}" if inherited else f"rule={self.rule.name}"


def _leave_out_of_graphs(rule: Rule) -> None:
    """Keep what walks the autograd graph out of torch.compile, whose import takes a second: other rules do without."""
    if rule.direct and FeedbackLayer._carry_uncompiled is FeedbackLayer._carry:
        FeedbackLayer._carry_uncompiled = torch.compiler.disable(FeedbackLayer._carry)  # type: ignore[no-untyped-call]
        FeedbackLayer.cut = torch.compiler.disable(FeedbackLayer.cut)  # type: ignore[method-assign, no-untyped-call]


def _weight_itself(weight: Tensor, state: Tensor | None) -> Tensor:
    return weight


def _state_itself(weight: Tensor, state: Tensor) -> Tensor:
    return state
