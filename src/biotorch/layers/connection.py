"""One weight matrix of a layer together with its feedback weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from biotorch.rules import FeedbackRule

if TYPE_CHECKING:
    from biotorch.layers.state import RuleState


class Connection(NamedTuple):
    """W and B of one connection. Most layers have one; attention has two or four, recurrent cells have two."""

    layer: RuleState
    #: Name of the parameter within the layer: `weight`, `in_proj_weight`, `out_proj.weight` ...
    parameter: str

    @property
    def weight(self) -> Tensor:
        """W as (out, in, ...), a view where the layer keeps it otherwise."""
        return self.layer.oriented(self.parameter)

    @property
    def trained(self) -> nn.Parameter:
        """The parameter itself."""
        return self.layer.get_parameter(self.parameter)

    @property
    def gradient(self) -> Tensor | None:
        """That of the parameter, as (out, in, ...)."""
        found = self.trained.grad
        return None if found is None else self.layer.orient(found)

    @property
    def feedback(self) -> Tensor | None:
        """B, or what the rule keeps of it; None where the rule has none."""
        own = self.buffer
        if own is not None or self.parameter not in self.layer.feedback_columns:
            return own
        columns = self.layer.feedback_columns[self.parameter]
        matrix = self.layer.shared_matrix
        rows = matrix[:, : columns.size] * columns.scale
        return rows.view(len(matrix), *self.layer.projection_shape(self.parameter))

    @property
    def feedback_shape(self) -> tuple[int, ...] | None:
        """The shape of B, without making it."""
        if self.parameter in self.layer.feedback_columns:
            return (len(self.layer.shared_matrix), *self.layer.projection_shape(self.parameter))
        return None if self.buffer is None else tuple(self.buffer.shape)

    @property
    def buffer(self) -> Tensor | None:
        """B where it is the layer's own, not a slice of a shared matrix."""
        return self.layer._buffers.get(feedback_name(self.parameter))

    @property
    def effective_feedback(self) -> Tensor | None:
        """B as the backward pass uses it, in the shape of W; None where the rule has no such thing."""
        rule = self.layer.rule
        if isinstance(rule, FeedbackRule) and not rule.trains_output_only:
            with torch.no_grad():
                return rule.feedback(self.weight, self.buffer)
        return None


def feedback_name(parameter: str) -> str:
    """Where a layer keeps the B of a parameter: `feedback` of `weight`, `in_proj_feedback` of `in_proj_weight`."""
    return _named_after(parameter, "feedback")


def norm_name(parameter: str) -> str:
    """Where it keeps the norm that W started with, for `constrain_weights`."""
    return _named_after(parameter, "initial_norm")


def descent_prefix(parameter: str) -> str:
    """What the names of its optimizer state begin with, where B has one: momenta, a number of steps."""
    return f"{feedback_name(parameter)}_state_"


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
    from biotorch.layers.base import FeedbackLayer  # noqa: PLC0415 - the layers are made of connections

    found = {}
    for name, layer in model.named_modules():
        if isinstance(layer, FeedbackLayer):
            own = layer.connections
            for connection in own:
                parts = [name, connection.parameter] if len(own) > 1 else [name]
                found[".".join(filter(None, parts))] = connection
    return found
