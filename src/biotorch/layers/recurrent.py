"""Recurrent cells whose two weight matrices are under a learning rule; the gates are unchanged."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from biotorch.kernel.functions import Operation
from biotorch.layers.base import FeedbackLayer
from biotorch.layers.linear import Product
from biotorch.layers.registry import register_layer
from biotorch.layers.tracing import as_leaf, is_traced


class _Cell(FeedbackLayer):
    """Base of the cells. `feedback_ih` carries the error to the input, `feedback_hh` to the previous hidden state."""

    weight_names = ("weight_ih", "weight_hh")
    affine = False

    bias_ih: Any  # a Tensor or None: torch says Tensor
    bias_hh: Any
    input_size: int
    hidden_size: int

    @property
    def output_size(self) -> None:
        return None

    def entry(self, x: Tensor) -> Operation:
        return Product()

    def _gates(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        if x.dim() != 2 or h.shape != (len(x), self.hidden_size):
            raise ValueError(
                f"{self.label or type(self).__name__} takes an input (N, {self.input_size}) and a state "
                f"(N, {self.hidden_size}), got {tuple(x.shape)} and {tuple(h.shape)}"
            )
        return (
            self.carry("weight_ih", x, self.bias_ih, Product()),
            self.carry("weight_hh", h, self.bias_hh, Product()),
        )

    def _state(self, input: Tensor, given: Tensor | None) -> Tensor:
        """The hidden state with a batch dimension; zeros if none is given."""
        if given is None:
            return input.new_zeros(len(input) if input.dim() == 2 else 1, self.hidden_size)
        return given if given.dim() == 2 else given.unsqueeze(0)


def _batched(x: Tensor) -> Tensor:
    return x if x.dim() == 2 else x.unsqueeze(0)


@register_layer(nn.RNNCell)
class RNNCell(_Cell, nn.RNNCell):
    """`torch.nn.RNNCell` under a learning rule. Input (N, input_size), state (N, hidden_size)."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        if is_traced(input):
            return as_leaf(self, input, hx)  # type: ignore[no-any-return]
        self.require_floating(input)
        if self.plain:
            self.begin_plain()
            return nn.RNNCell.forward(self, input, hx)
        x, recurrent = self._gates(_batched(input), self._state(input, hx))
        h = torch.tanh(x + recurrent) if self.nonlinearity == "tanh" else torch.relu(x + recurrent)
        return h if input.dim() == 2 else h.squeeze(0)


@register_layer(nn.LSTMCell)
class LSTMCell(_Cell, nn.LSTMCell):
    """`torch.nn.LSTMCell` under a learning rule. Input (N, input_size), states (N, hidden_size)."""

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        if is_traced(input):
            return as_leaf(self, input, hx)  # type: ignore[no-any-return]
        self.require_floating(input)
        if self.plain:
            self.begin_plain()
            return nn.LSTMCell.forward(self, input, hx)
        h, c = (self._state(input, state) for state in (hx or (None, None)))
        x, recurrent = self._gates(_batched(input), h)
        inside, forget, candidate, outside = (x + recurrent).chunk(4, 1)
        c = forget.sigmoid() * c + inside.sigmoid() * candidate.tanh()
        h = outside.sigmoid() * c.tanh()
        return (h, c) if input.dim() == 2 else (h.squeeze(0), c.squeeze(0))


@register_layer(nn.GRUCell)
class GRUCell(_Cell, nn.GRUCell):
    """`torch.nn.GRUCell` under a learning rule. Input (N, input_size), state (N, hidden_size)."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        if is_traced(input):
            return as_leaf(self, input, hx)  # type: ignore[no-any-return]
        self.require_floating(input)
        if self.plain:
            self.begin_plain()
            return nn.GRUCell.forward(self, input, hx)
        h = self._state(input, hx)
        x, recurrent = self._gates(_batched(input), h)
        x_reset, x_update, x_new = x.chunk(3, 1)
        h_reset, h_update, h_new = recurrent.chunk(3, 1)
        update = (x_update + h_update).sigmoid()
        new = (x_new + (x_reset + h_reset).sigmoid() * h_new).tanh()
        h = new + update * (h - new)
        return h if input.dim() == 2 else h.squeeze(0)
