"""Recurrent layers (RNN, LSTM, GRU), unrolled through the gates of the cells, under a learning rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from biotorch.kernel.projection import Gradients, Operation
from biotorch.layers.linear import Product
from biotorch.layers.recurrent import Elman, Gated, LongShortTerm, Recurrent, States
from biotorch.layers.registry import register_layer
from biotorch.layers.watching import uncompiled


class _Sequences(NamedTuple):
    """Sequences of a batch in the order of a packed one: by time step, and within a step by example.

    Attributes:
        label: name of the layer for error messages.
        sizes: number of examples at each step, which never grows.
        order: index in the batch of each example; None if they are in the batch's order.
        packed: whether the user packed them.
        time_major: whether tensors of the network are (T, N, ...).
    """

    label: str
    sizes: list[int]
    order: Tensor | None
    packed: bool
    time_major: bool

    def require_unambiguous(self) -> None:
        """Raise RuntimeError if an error (rows, n) may be meant for padded sequences that were flattened."""
        n, steps = self.sizes[0], len(self.sizes)
        if n == 1 or self.sizes[-1] < n:
            return
        in_order = self.order is None or self.order.tolist() == list(range(n))
        if not (in_order and (self.time_major or steps == 1)):
            raise RuntimeError(
                f"{self.label}: all {n} packed sequences have length {steps}, so an output of {n * steps} rows may "
                "follow the packed rows or flattened padded sequences: pad the layer's output "
                "(torch.nn.utils.rnn.pad_packed_sequence), and flatten it behind the output layer."
            )


class _Step(NamedTuple):
    """`Product` at one time step under a direct rule, where it hears the error of its own step and examples."""

    sequences: _Sequences
    step: int

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return Product().forward(x, weight, bias)

    def backward(self, dy: Tensor, x: Tensor, weight: Tensor, mask: Sequence[bool]) -> Gradients:
        return Product().backward(dy, x, weight, mask)

    def output_error(self, dy: Tensor) -> Tensor:
        return dy

    @property
    def packed(self) -> bool:
        """Whether the rows of a step are in the order of a packed sequence, and not of the batch."""
        return self.sequences.packed

    @property
    def batch_dim(self) -> int:
        return int(self.time_major)

    @property
    def time_major(self) -> bool:
        return self.sequences.time_major

    def positions(self, x: Tensor) -> tuple[int, ...]:
        """Examples and steps of the whole sequences, of which `x` is a part."""
        examples, steps = self.sequences.sizes[0], len(self.sequences.sizes)
        return (steps, examples) if self.time_major else (examples, steps)

    def arranged(self, error: Tensor, align: Callable[[Tensor], Tensor]) -> Tensor:
        sizes, step = self.sequences.sizes, self.step
        if self.sequences.packed and error.dim() == 2 and len(error) == sum(sizes):  # one row for each packed row
            self.sequences.require_unambiguous()
            return error.narrow(0, sum(sizes[:step]), sizes[step])
        whole = align(error)  # (N, T, n), or (N, 1, n) where the output has other steps or none; time-major (T, N, n)
        axis = 1 - self.batch_dim
        rows = whole.select(axis, step if whole.shape[axis] > 1 else 0)  # (N, n)
        return (rows if self.sequences.order is None else rows[self.sequences.order])[: sizes[step]]

    def grid(self, x: Tensor) -> tuple[int, ...]:
        return ()

    def spread(self, projected: Tensor, x: Tensor) -> Tensor:
        return projected.expand(x.shape)

    def carried(self, error: Tensor, rows: Tensor, x: Tensor, mask: tuple[bool, bool]) -> list[Tensor]:
        raise NotImplementedError("a product has no kernel")

    def spread_adjoint(self, x: Tensor, shape: torch.Size) -> Tensor:
        return x.sum_to_size(shape)


class _Layer(Recurrent):
    """Base of the layers, which compute all time steps, several layers deep and in one or both directions.

    Without gradients this is torch's fused call. With gradients the cells are unrolled, outside of compiled graphs.
    Under rules that are not direct, all steps of the input take one product.
    """

    check_forward_args: Callable[..., None]
    num_layers: int
    batch_first: bool
    dropout: float
    bidirectional: bool

    @classmethod
    def obstacle(cls, layer: nn.Module) -> str:
        return "proj_size > 0 has no feedback version" if getattr(layer, "proj_size", 0) else ""

    def require_floating(self, input: Any) -> None:
        super().require_floating(input.data if isinstance(input, PackedSequence) else input)

    @property
    def suffixes(self) -> list[str]:
        """Ends of the parameters' names: `_l0`, `_l0_reverse`, `_l1` ... in the order of the states."""
        directions = ("", "_reverse") if self.bidirectional else ("",)
        return [f"_l{depth}{direction}" for depth in range(self.num_layers) for direction in directions]

    @property
    def weight_names(self) -> Sequence[str]:  # type: ignore[override]
        return [f"weight_{read}{suffix}" for suffix in self.suffixes for read in ("ih", "hh")]

    def entry(self, x: Tensor) -> Operation:
        time_major = not self.batch_first and x.dim() == 3
        return Product(int(time_major), time_major)

    @uncompiled
    def unrolled(self, input: Any, hx: Any) -> Any:
        data, sequences = self._packed(input)
        states = self._initial(data, sequences, hx, unbatched=not sequences.packed and input.dim() == 2)
        directions, final = len(self.suffixes) // self.num_layers, []
        for depth in range(self.num_layers):
            outputs = []
            for index in range(depth * directions, (depth + 1) * directions):
                first = tuple(state[index] for state in states)
                output, last = self._swept(self.suffixes[index], data, sequences, first)
                outputs.append(output)
                final.append(last)
            data = torch.cat(outputs, 1) if directions > 1 else outputs[0]  # (rows, directions * hidden_size)
            if self.dropout and depth < self.num_layers - 1:
                data = F.dropout(data, self.dropout, self.training)
        states = tuple(map(torch.stack, zip(*final, strict=True)))  # (layers * directions, N, hidden_size) each
        if sequences.packed:
            y: Any = PackedSequence(data, *input[1:])
            if input.unsorted_indices is not None:
                states = tuple(state.index_select(1, input.unsorted_indices) for state in states)
        elif input.dim() == 2:
            y, states = data, tuple(state.squeeze(1) for state in states)
        else:
            y = data.view(len(sequences.sizes), sequences.sizes[0], data.shape[1])  # (T, N, features)
            y = y.transpose(0, 1) if self.batch_first else y
        return y, states if self.states > 1 else states[0]

    def _packed(self, input: Any) -> tuple[Tensor, _Sequences]:
        """All time steps of all examples, (rows, features), and what each row is."""
        label = self.label or type(self).__name__
        if isinstance(input, PackedSequence):
            sizes, order = input.batch_sizes.tolist(), input.sorted_indices
            return input.data, _Sequences(label, sizes, order, packed=True, time_major=not self.batch_first)
        if input.dim() not in (2, 3):
            shape = "(N, T, features)" if self.batch_first else "(T, N, features)"
            raise ValueError(f"{label} takes an input {shape} or (T, features), got {tuple(input.shape)}")
        time_major = input.dim() == 3 and not self.batch_first
        x = input.unsqueeze(1) if input.dim() == 2 else input if time_major else input.transpose(0, 1)  # (T, N, ...)
        if not len(x):
            raise RuntimeError(f"{label} takes sequences of at least one step, got {tuple(input.shape)}")
        return x.flatten(0, 1), _Sequences(label, [x.shape[1]] * len(x), None, packed=False, time_major=time_major)

    def _initial(self, data: Tensor, sequences: _Sequences, hx: Any, unbatched: bool) -> States:
        """The states before the first step, (layers * directions, N, hidden_size) each, in the order of the rows."""
        if hx is None:
            size = len(self.suffixes), sequences.sizes[0], self.hidden_size
            states: States = (data.new_zeros(size),) * self.states
        else:
            given = hx if self.states > 1 else (hx,)
            states = tuple(each.unsqueeze(1) if unbatched else each for each in given)
        self.check_forward_args(data, states if self.states > 1 else states[0], sequences.sizes)
        if hx is not None and sequences.order is not None:
            states = tuple(each.index_select(1, sequences.order) for each in states)
        return states

    def _swept(self, suffix: str, data: Tensor, sequences: _Sequences, states: States) -> tuple[Tensor, States]:
        """One layer in one direction: the hidden states (rows, hidden_size) in the order of `data`, the last states."""
        bias_ih, bias_hh = (getattr(self, f"bias_{read}{suffix}") if self.bias else None for read in ("ih", "hh"))
        sizes, direct = sequences.sizes, self.rule.direct
        operation: Operation = Product()
        inputs = torch.split(data if direct else self.carry(f"weight_ih{suffix}", data, bias_ih, operation), sizes)
        hidden = list(inputs)
        steps = range(len(sizes))
        for t in reversed(steps) if suffix.endswith("_reverse") else steps:
            x, size = inputs[t], sizes[t]
            now = states if size == sizes[0] else tuple(state[:size] for state in states)
            if direct:
                operation = _Step(sequences, t)
                x = self.carry(f"weight_ih{suffix}", x, bias_ih, operation)
            new = self.gates(x, self.carry(f"weight_hh{suffix}", now[0], bias_hh, operation), now)
            hidden[t] = new[0]
            if size < sizes[0]:  # examples that are over, or in the reverse direction not begun, keep their states
                kept = (state[size:] for state in states)
                new = tuple(torch.cat([n, k.to(n.dtype)]) for n, k in zip(new, kept, strict=True))
            states = new
        return torch.cat(hidden), states


@register_layer(nn.RNN)
class RNN(Elman, _Layer, nn.RNN):
    """`torch.nn.RNN` under a learning rule, with torch's arguments, shapes and outputs.

    Examples:
        >>> layer = biotorch.layers.RNN(4, 3, batch_first=True, rule="fa")
        >>> y, h = layer(torch.randn(2, 7, 4))
        >>> y.shape
        torch.Size([2, 7, 3])
    """


@register_layer(nn.LSTM)
class LSTM(LongShortTerm, _Layer, nn.LSTM):
    """`torch.nn.LSTM` under a learning rule, with torch's arguments, shapes and outputs.

    Examples:
        >>> layer = biotorch.layers.LSTM(4, 3, bidirectional=True, batch_first=True, rule="fa")
        >>> y, (h, c) = layer(torch.randn(2, 7, 4))
        >>> y.shape, h.shape
        (torch.Size([2, 7, 6]), torch.Size([2, 2, 3]))
    """


@register_layer(nn.GRU)
class GRU(Gated, _Layer, nn.GRU):
    """`torch.nn.GRU` under a learning rule, with torch's arguments, shapes and outputs.

    Examples:
        >>> layer = biotorch.layers.GRU(4, 3, num_layers=2, batch_first=True, rule="fa")
        >>> y, h = layer(torch.randn(2, 7, 4))
        >>> y.shape, h.shape
        (torch.Size([2, 7, 3]), torch.Size([2, 2, 3]))
    """
