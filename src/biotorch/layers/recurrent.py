"""Gates of recurrent cells and layers, which keep their true gradient, and the cells under a learning rule."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from biotorch.kernel.projection import Operation
from biotorch.layers.base import FeedbackLayer
from biotorch.layers.linear import Product
from biotorch.layers.registry import register_layer
from biotorch.layers.tracing import as_leaf, is_traced

#: The hidden state h, for an LSTM followed by the cell state c: (N, hidden_size) each.
States: TypeAlias = tuple[Tensor, ...]


class Recurrent(FeedbackLayer):
    """Base of cells and layers. `feedback_ih` carries the error to the input, `feedback_hh` to the earlier state."""

    #: Number of states.
    states = 1

    bias: bool
    input_size: int
    hidden_size: int

    @property
    def output_size(self) -> None:
        return None

    def gates(self, x: Tensor, recurrent: Tensor, states: States) -> States:
        """The next states from the products with the input and with h, both (N, gates * hidden_size)."""
        raise NotImplementedError

    def unrolled(self, input: Any, hx: Any) -> Any:
        """The forward pass, with an autograd Function for each product with a weight."""
        raise NotImplementedError

    def forward(self, input: Any, hx: Any = None) -> Any:
        if is_traced(input):
            return as_leaf(self, input, hx)
        self.require_floating(input)
        if self.plain:
            self.begin_plain()
            return self.torch_type.forward(self, input, hx)
        return self.unrolled(input, hx)


class Elman(Recurrent):
    """h' = tanh(W_ih x + W_hh h), or ReLU (Elman 1990). All formulas leave out the biases."""

    nonlinearity: str

    def gates(self, x: Tensor, recurrent: Tensor, states: States) -> States:
        return (torch.tanh(x + recurrent) if self.nonlinearity == "tanh" else torch.relu(x + recurrent),)


class LongShortTerm(Recurrent):
    """c' = f c + i g and h' = o tanh(c') with gates i, f, g, o of W_ih x + W_hh h (Hochreiter and Schmidhuber 1997)."""

    states = 2

    def gates(self, x: Tensor, recurrent: Tensor, states: States) -> States:
        inside, forget, candidate, outside = (x + recurrent).chunk(4, 1)
        c = forget.sigmoid() * states[1] + inside.sigmoid() * candidate.tanh()
        return outside.sigmoid() * c.tanh(), c


class Gated(Recurrent):
    """h' = n + z (h - n) with n = tanh(W_in x + r (W_hn h)) and gates r and z (Cho et al. 2014), as torch has it."""

    def gates(self, x: Tensor, recurrent: Tensor, states: States) -> States:
        x_reset, x_update, x_new = x.chunk(3, 1)
        h_reset, h_update, h_new = recurrent.chunk(3, 1)
        update = (x_update + h_update).sigmoid()
        new = (x_new + (x_reset + h_reset).sigmoid() * h_new).tanh()
        return (new + update * (states[0] - new),)


class _Cell(Recurrent):
    """Base of the cells, which compute one time step."""

    weight_names = ("weight_ih", "weight_hh")
    bias_ih: Any  # a Tensor or None: torch says Tensor
    bias_hh: Any

    def entry(self, x: Tensor) -> Operation:
        return Product()

    def unrolled(self, input: Tensor, hx: Any) -> Any:
        batched = input.dim() == 2
        x = input if batched else input.unsqueeze(0)
        if hx is None:
            states = (x.new_zeros(len(x), self.hidden_size),) * self.states
        else:
            given = hx if self.states > 1 else (hx,)
            states = tuple(each if each.dim() == 2 else each.unsqueeze(0) for each in given)
        if x.dim() != 2 or any(state.shape != (len(x), self.hidden_size) for state in states):
            raise ValueError(
                f"{self.label or type(self).__name__} takes an input (N, {self.input_size}) and a state "
                f"(N, {self.hidden_size}), got {tuple(x.shape)} and {' and '.join(str(tuple(s.shape)) for s in states)}"
            )
        of_input = self.carry("weight_ih", x, self.bias_ih, Product())
        of_state = self.carry("weight_hh", states[0], self.bias_hh, Product())
        new = [each if batched else each.squeeze(0) for each in self.gates(of_input, of_state, states)]
        return tuple(new) if self.states > 1 else new[0]


@register_layer(nn.RNNCell)
class RNNCell(Elman, _Cell, nn.RNNCell):
    """`torch.nn.RNNCell` under a learning rule. Input (N, input_size), state (N, hidden_size).

    Examples:
        >>> layer = biotorch.layers.RNNCell(4, 3, rule="fa")
        >>> layer(torch.randn(2, 4)).shape, layer.feedback_ih.shape, layer.feedback_hh.shape
        (torch.Size([2, 3]), torch.Size([3, 4]), torch.Size([3, 3]))
    """


@register_layer(nn.LSTMCell)
class LSTMCell(LongShortTerm, _Cell, nn.LSTMCell):
    """`torch.nn.LSTMCell` under a learning rule. Input (N, input_size), states (N, hidden_size).

    Examples:
        >>> layer = biotorch.layers.LSTMCell(4, 3, rule="fa")
        >>> h, c = layer(torch.randn(2, 4))
        >>> h.shape, layer.feedback_hh.shape
        (torch.Size([2, 3]), torch.Size([12, 3]))
    """


@register_layer(nn.GRUCell)
class GRUCell(Gated, _Cell, nn.GRUCell):
    """`torch.nn.GRUCell` under a learning rule. Input (N, input_size), state (N, hidden_size).

    Examples:
        >>> layer = biotorch.layers.GRUCell(4, 3, rule="usf")
        >>> layer(torch.randn(2, 4), torch.zeros(2, 3)).shape
        torch.Size([2, 3])
    """
