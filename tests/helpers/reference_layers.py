"""Every layer type again, slowly, in float64: forward, and backward by hand around the rule's transport.

A layer's backward calls `hand(read, delta)` for every reading of an input by a weight matrix: what the rule gives
to that input. All else (gates, softmax, products of activations) is the derivative, written out.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import torch
from reference_maps import ConvolutionMap, LinearMap, SamePaddedMap, TransposedConvolutionMap
from torch import Tensor, nn


class Read:
    """One reading of an input by rows of a weight matrix: z = W y + b, with what the rule keeps of B."""

    def __init__(self, map_: Any, weight: Tensor, feedback: Tensor | None, init: str, rows: slice = slice(None)):
        self.map, self.weight, self.feedback, self.init, self.rows = map_, weight, feedback, init, rows

    def forward(self, bias: Tensor | None) -> Tensor:
        return self.map.forward(self.weight[self.rows], None if bias is None else bias[self.rows])

    def backwards_through(self, matrix: Tensor, delta: Tensor) -> Tensor:
        """The rows of `matrix`, in the place of those of W."""
        return self.map.backwards_through(matrix[self.rows], delta)

    def add_gradients(self, delta: Tensor, weight_gradient: Tensor, bias_gradient: Tensor | None) -> None:
        weight_gradient[self.rows] += self.map.weight_gradient(delta)
        if bias_gradient is not None:
            bias_gradient[self.rows] += self.map.bias_gradient(delta)


#: What the rule gives to the input of a reading whose output has the gradient delta.
Hand = Callable[[Read, Tensor], Tensor]


def scale(weight: Tensor, init: str) -> float:
    field = math.prod(weight.shape[2:])
    fan_in, fan_out = weight.shape[1] * field, weight.shape[0] * field
    return {"xavier": math.sqrt(2 / (fan_in + fan_out)), "kaiming": 1 / math.sqrt(3 * fan_in), "normal": 1.0}[init]


def feedback_of(layer: nn.Module, parameter: str) -> Tensor | None:
    """The buffer `in_proj_feedback` of `in_proj_weight`, and so on."""
    found = getattr(layer, parameter.replace(".", "_").replace("weight", "feedback"), None)
    return None if found is None else found.detach()


class Layer:
    """What a layer of several matrices shares: `call` is the module that calls it, for the options it passes."""

    def __init__(self, layer: nn.Module, inputs: Any, init: str, call: nn.Module) -> None:
        self.layer, self.inputs, self.init, self.call = layer, inputs, init, call
        self.gradients = {name: torch.zeros_like(p) for name, p in layer.named_parameters()}

    def read(self, parameter: str, map_: Any, rows: slice = slice(None)) -> Read:
        weight = self.layer.get_parameter(parameter).detach()
        return Read(map_, weight, feedback_of(self.layer, parameter), self.init, rows)

    def bias(self, name: str) -> Tensor | None:
        parameter = dict(self.layer.named_parameters()).get(name)
        return None if parameter is None else parameter.detach()

    def learn(self, read: Read, delta: Tensor, weight: str, bias: str) -> None:
        read.add_gradients(delta, self.gradients[weight], self.gradients.get(bias))


class Affine(Layer):
    """One map of one input."""

    maps = LinearMap

    def __init__(self, layer: nn.Module, inputs: Any, init: str, call: nn.Module) -> None:
        super().__init__(layer, inputs, init, call)
        self.one = Read(self.map(), self.matrix(layer.weight.detach()), feedback_of(layer, "weight"), init)

    def map(self) -> Any:
        return self.maps(self.layer, self.inputs)

    def matrix(self, weight: Tensor) -> Tensor:
        """W as (out, in, ...)."""
        return weight

    def forward(self) -> Tensor:
        return self.one.forward(self.bias("bias"))

    def backward(self, delta: Tensor, hand: Hand) -> tuple[Any, dict[str, Tensor]]:
        self.one.add_gradients(delta, self.matrix(self.gradients["weight"]), self.gradients.get("bias"))
        return hand(self.one, delta), self.gradients

    def error(self, delta: Tensor) -> Tensor:
        return self.one.map.error(delta)


class Convolution(Affine):
    maps = ConvolutionMap


class SamePadded(Affine):
    """timm's Conv2dSame."""

    maps = SamePaddedMap


class TransposedConvolution(Affine):
    maps = TransposedConvolutionMap


class TransposedLinear(Affine):
    """Hugging Face's Conv1D keeps W as (in, out)."""

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.T


class Bilinear(Affine):
    """z_k = sum over i, j of W_kij x_i y_j: a matrix times all products x_i y_j."""

    def map(self) -> Any:
        x, y = self.inputs
        products = [x[..., i] * y[..., j] for i in range(x.shape[-1]) for j in range(y.shape[-1])]
        return LinearMap(self.layer, torch.stack(products, -1))

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.view(len(weight), -1)

    def backward(self, delta: Tensor, hand: Hand) -> tuple[Any, dict[str, Tensor]]:
        of_products, gradients = super().backward(delta, hand)
        x, y = self.inputs
        dx, dy = torch.zeros_like(x), torch.zeros_like(y)
        for i in range(x.shape[-1]):
            for j in range(y.shape[-1]):
                received = of_products[..., i * y.shape[-1] + j]
                dx[..., i] += received * y[..., j]
                dy[..., j] += received * x[..., i]
        return (dx, dy), gradients


class Attention(Layer):
    """softmax(q k^T / sqrt(d) + mask) v for every example and head, between its projections.

    Inputs are query, key and value; `call` holds the masks. One matrix reads an input that serves as two of them
    once, with the rows of both. The output is batch first, whatever the inputs are.
    """

    def __init__(self, layer: nn.Module, inputs: Any, init: str, call: nn.Module) -> None:
        super().__init__(layer, inputs, init, call)
        self.unbatched = inputs[0].dim() == 2
        self.time_major = not self.unbatched and not layer.batch_first
        self.reads: list[tuple[list[int], Read, str]] = []  # which of the inputs, and W's name
        if layer.in_proj_weight is None:
            for i, name in enumerate(("q_proj_weight", "k_proj_weight", "v_proj_weight")):
                self.reads.append(([i], self.read(name, LinearMap(layer, self.arranged(inputs[i]))), name))
        else:
            for served in runs(inputs):
                rows = slice(served[0] * layer.embed_dim, (served[-1] + 1) * layer.embed_dim)
                read = self.read("in_proj_weight", LinearMap(layer, self.arranged(inputs[served[0]])), rows)
                self.reads.append((served, read, "in_proj_weight"))

    def arranged(self, x: Tensor) -> Tensor:
        return x[None] if self.unbatched else x.transpose(0, 1) if self.time_major else x

    def forward(self) -> Tensor:
        layer, parts = self.layer, []
        bias = self.bias("in_proj_bias")
        for served, read, name in self.reads:
            if name == "in_proj_weight":
                parts += read.forward(bias).chunk(len(served), -1)
            else:
                parts.append(read.forward(None if bias is None else bias.chunk(3)[served[0]]))
        self.q, self.k, self.v = (part.unflatten(-1, (layer.num_heads, -1)) for part in parts)  # (N, T, heads, d)
        self.p = {}
        attended = torch.zeros_like(self.q)
        for n, head in self.examples_and_heads():
            scores = self.q[n, :, head] @ self.k[n, :, head].T / math.sqrt(layer.head_dim) + self.mask(n, head)
            self.p[n, head] = (scores - scores.amax(1, keepdim=True)).exp()
            self.p[n, head] /= self.p[n, head].sum(1, keepdim=True)
            attended[n, :, head] = self.p[n, head] @ self.v[n, :, head]
        self.out = self.read("out_proj.weight", LinearMap(layer, attended.flatten(2)))
        y = self.out.forward(self.bias("out_proj.bias"))
        return y[0] if self.unbatched else y

    def backward(self, delta: Tensor, hand: Hand) -> tuple[Any, dict[str, Tensor]]:
        delta, hand = delta[None] if self.unbatched else delta, self.with_batch(hand)
        self.learn(self.out, delta, "out_proj.weight", "out_proj.bias")
        of_attended = hand(self.out, delta).unflatten(-1, (self.layer.num_heads, -1))
        dq, dk, dv = (torch.zeros_like(part) for part in (self.q, self.k, self.v))
        for n, head in self.examples_and_heads():
            p, of_output = self.p[n, head], of_attended[n, :, head]
            dv[n, :, head] = p.T @ of_output
            dp = of_output @ self.v[n, :, head].T
            of_scores = p * (dp - (p * dp).sum(1, keepdim=True)) / math.sqrt(self.layer.head_dim)
            dq[n, :, head] = of_scores @ self.k[n, :, head]
            dk[n, :, head] = of_scores.T @ self.q[n, :, head]
        parts, received = [part.flatten(2) for part in (dq, dk, dv)], [torch.zeros_like(x) for x in self.inputs]
        for served, read, name in self.reads:
            delta = torch.cat([parts[i] for i in served], -1)
            if name == "in_proj_weight":
                self.learn(read, delta, name, "in_proj_bias")
            else:
                read.add_gradients(delta, self.gradients[name], None)
                if "in_proj_bias" in self.gradients:
                    self.gradients["in_proj_bias"].chunk(3)[served[0]].add_(delta.sum((0, 1)))
            dx = hand(read, delta)
            received[served[0]] += dx[0] if self.unbatched else dx.transpose(0, 1) if self.time_major else dx
        return tuple(received), self.gradients

    def with_batch(self, hand: Hand) -> Hand:
        """The error of an unbatched output has no batch dimension either: (T, n_out)."""

        class Unbatched(LinearMap):
            def project(self, feedback: Tensor, error: Tensor) -> Tensor:
                return super().project(feedback, error[None])

        def handed(read: Read, delta: Tensor) -> Tensor:
            one = Unbatched(self.layer, read.map.x)
            return hand(Read(one, read.weight, read.feedback, read.init, read.rows), delta)

        return handed if self.unbatched else hand

    def examples_and_heads(self) -> list[tuple[int, int]]:
        return [(n, head) for n in range(len(self.q)) for head in range(self.layer.num_heads)]

    def mask(self, n: int, head: int) -> Tensor:
        """(T, S), or (S), to add to the scores."""
        total = torch.zeros((), dtype=torch.float64)
        if (mask := self.call.options.get("attn_mask")) is not None:
            total = total + additive(mask if mask.dim() == 2 else mask[n * self.layer.num_heads + head])
        if (padding := self.call.options.get("key_padding_mask")) is not None:
            total = total + additive(padding if padding.dim() == 1 else padding[n])
        return total


def runs(inputs: Any) -> list[list[int]]:
    """The positions 0, 1, 2 in runs of one and the same tensor."""
    groups = [[0]]
    for i in (1, 2):
        if inputs[i] is inputs[i - 1]:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def additive(mask: Tensor) -> Tensor:
    """True in a boolean mask hides a position."""
    if mask.dtype != torch.bool:
        return mask.double()
    return torch.tensor([[-math.inf if hidden else 0.0 for hidden in row] for row in mask.view(-1, mask.shape[-1])])


class Cell(Layer):
    """A cell unrolled over x (N, T, in), or (T, in), from the states given with it, or from zero.

    Gives all hidden states, (N, T, hidden). `step` and `step_back` are those of one time step and example batch.
    """

    def __init__(self, layer: nn.Module, inputs: Any, init: str, call: nn.Module) -> None:
        super().__init__(layer, inputs, init, call)
        x, *states = inputs
        self.unbatched = x.dim() == 2
        self.x = x[None] if self.unbatched else x
        self.states = [state[None] if self.unbatched else state for state in states]

    def forward(self) -> Tensor:
        zero = self.x.new_zeros(len(self.x), self.layer.hidden_size)
        state, self.steps, hidden = (self.states or [zero, zero]), [], []
        for t in range(self.x.shape[1]):
            ih = self.read("weight_ih", LinearMap(self.layer, self.x[:, t]))
            hh = self.read("weight_hh", LinearMap(self.layer, state[0]))
            a, b = ih.forward(self.bias("bias_ih")), hh.forward(self.bias("bias_hh"))
            state, kept = self.step(a, b, state)
            self.steps.append((ih, hh, kept))
            hidden.append(state[0])
        y = torch.stack(hidden, 1)
        return y[0] if self.unbatched else y

    def backward(self, delta: Tensor, hand: Hand) -> tuple[Any, dict[str, Tensor]]:
        delta, dx = (delta[None] if self.unbatched else delta), torch.zeros_like(self.x)
        hand = self.summed(hand)
        from_later = [torch.zeros_like(delta[:, 0]) for _ in range(2)]
        for t, (ih, hh, kept) in reversed(list(enumerate(self.steps))):
            from_later[0] = from_later[0] + delta[:, t]
            of_input, of_recurrent, from_later = self.step_back(from_later, kept)
            self.learn(ih, of_input, "weight_ih", "bias_ih")
            self.learn(hh, of_recurrent, "weight_hh", "bias_hh")
            dx[:, t] = hand(ih, of_input)
            from_later[0] = from_later[0] + hand(hh, of_recurrent)
        received = (dx, *from_later[: len(self.states)])
        return tuple(part[0] if self.unbatched else part for part in received), self.gradients

    def summed(self, hand: Hand) -> Hand:
        """At one time step an example hears the sum of its errors at the output."""
        unbatched = self.unbatched

        class OneStep(LinearMap):
            def project(self, feedback: Tensor, error: Tensor) -> Tensor:
                rows = [error] if unbatched else list(error)
                return torch.stack([e.reshape(-1, e.shape[-1]).sum(0) @ feedback for e in rows])

        return lambda read, delta: hand(
            Read(OneStep(self.layer, read.map.x), read.weight, read.feedback, read.init, read.rows), delta
        )


class RNN(Cell):
    def step(self, a: Tensor, b: Tensor, state: Any) -> Any:
        h = torch.tanh(a + b) if self.layer.nonlinearity == "tanh" else (a + b).clamp(min=0)
        return [h], h

    def step_back(self, from_later: Any, h: Tensor) -> Any:
        slope = 1 - h**2 if self.layer.nonlinearity == "tanh" else (h > 0).double()
        delta = from_later[0] * slope
        return delta, delta, [torch.zeros_like(delta)]


class LSTM(Cell):
    def step(self, a: Tensor, b: Tensor, state: Any) -> Any:
        i, f, g, o = (a + b).chunk(4, 1)
        i, f, g, o = sigmoid(i), sigmoid(f), torch.tanh(g), sigmoid(o)
        c = f * state[1] + i * g
        return [o * torch.tanh(c), c], (i, f, g, o, state[1], c)

    def step_back(self, from_later: Any, kept: Any) -> Any:
        (dh, dc), (i, f, g, o, c_before, c) = from_later, kept
        dc = dc + dh * o * (1 - torch.tanh(c) ** 2)
        gates = [dc * g * i * (1 - i), dc * c_before * f * (1 - f), dc * i * (1 - g**2)]
        delta = torch.cat([*gates, dh * torch.tanh(c) * o * (1 - o)], 1)
        return delta, delta, [torch.zeros_like(dh), dc * f]


class GRU(Cell):
    def step(self, a: Tensor, b: Tensor, state: Any) -> Any:
        (xr, xz, xn), (hr, hz, hn) = a.chunk(3, 1), b.chunk(3, 1)
        r, z = sigmoid(xr + hr), sigmoid(xz + hz)
        n = torch.tanh(xn + r * hn)
        return [(1 - z) * n + z * state[0]], (r, z, n, hn, state[0])

    def step_back(self, from_later: Any, kept: Any) -> Any:
        dh, (r, z, n, hn, h_before) = from_later[0], kept
        of_n = dh * (1 - z) * (1 - n**2)
        of_r, of_z = of_n * hn * r * (1 - r), dh * (h_before - n) * z * (1 - z)
        return torch.cat([of_r, of_z, of_n], 1), torch.cat([of_r, of_z, of_n * r], 1), [dh * z]


class Unrolled(Layer):
    """A recurrent layer, example by example and step by step, from the states given with x or from zero.

    Gives the hidden states of the last layer, (N, T, directions * hidden), and zeros behind the end of an example.
    """

    def __init__(self, layer: nn.Module, inputs: Any, init: str, call: nn.Module) -> None:
        super().__init__(layer, inputs, init, call)
        x, *states = inputs
        self.unbatched, self.directions = x.dim() == 2, 1 + layer.bidirectional
        self.x = x[None] if self.unbatched else x if layer.batch_first else x.transpose(0, 1)
        zero = self.x.new_zeros(layer.num_layers * self.directions, len(self.x), layer.hidden_size)
        self.given = len(states)
        self.states = [state[:, None] if self.unbatched else state for state in states] or [zero, zero]
        self.lengths = call.options["lengths"] or [self.x.shape[1]] * len(self.x)

    def walks(self, depth: int) -> Any:
        """Each example in each direction: index of the states, end of names, example, steps, columns of the output."""
        hidden = self.layer.hidden_size
        for direction in range(self.directions):
            for n, length in enumerate(self.lengths):
                steps = list(range(length))[:: -1 if direction else 1]
                name = f"_l{depth}" + "_reverse" * direction
                yield (
                    depth * self.directions + direction,
                    name,
                    n,
                    steps,
                    slice(direction * hidden, (direction + 1) * hidden),
                )

    def forward(self) -> Tensor:
        y, self.steps = self.x, {}
        for depth in range(self.layer.num_layers):
            outputs = y.new_zeros(*y.shape[:2], self.directions * self.layer.hidden_size)
            for index, name, n, steps, columns in self.walks(depth):
                state = [state[index, n : n + 1] for state in self.states]
                for t in steps:
                    ih = self.read(f"weight_ih{name}", OneStep(self.layer, y[n : n + 1, t], self.heard(n, t)))
                    hh = self.read(f"weight_hh{name}", OneStep(self.layer, state[0], self.heard(n, t)))
                    a, b = ih.forward(self.bias(f"bias_ih{name}")), hh.forward(self.bias(f"bias_hh{name}"))
                    state, kept = self.step(a, b, state)
                    self.steps[index, n, t] = ih, hh, kept
                    outputs[n, t, columns] = state[0][0]
            y = outputs
        return y[0] if self.unbatched else y

    def heard(self, n: int, t: int) -> Callable[[Tensor], Tensor]:
        """At an output with steps the error of step t of example n, else the example's."""

        def pick(error: Tensor) -> Tensor:
            own = error if self.unbatched else error[n]
            return own if own.dim() == 1 else own[t]

        return pick

    def backward(self, delta: Tensor, hand: Hand) -> tuple[Any, dict[str, Tensor]]:
        delta = delta[None] if self.unbatched else delta
        received = [torch.zeros_like(state) for state in self.states]
        for depth in reversed(range(self.layer.num_layers)):
            dx = None
            for index, name, n, steps, columns in self.walks(depth):
                from_later = [torch.zeros_like(state[index, n : n + 1]) for state in (*self.states, *self.states)][:2]
                for t in reversed(steps):
                    ih, hh, kept = self.steps[index, n, t]
                    from_later[0] = from_later[0] + delta[n, t, columns]
                    of_input, of_recurrent, from_later = self.step_back(from_later, kept)
                    self.learn(ih, of_input, f"weight_ih{name}", f"bias_ih{name}")
                    self.learn(hh, of_recurrent, f"weight_hh{name}", f"bias_hh{name}")
                    handed = hand(ih, of_input)
                    dx = delta.new_zeros(*delta.shape[:2], handed.shape[1]) if dx is None else dx
                    dx[n, t] += handed[0]
                    from_later[0] = from_later[0] + hand(hh, of_recurrent)
                for whole, part in zip(received, from_later, strict=False):
                    whole[index, n] = part[0]
            delta = dx
        if self.unbatched:
            return (delta[0], *(state[:, 0] for state in received[: self.given])), self.gradients
        return (delta if self.layer.batch_first else delta.transpose(0, 1), *received[: self.given]), self.gradients


class OneStep(LinearMap):
    """The product of one example at one step, which hears the part of the error that `heard` picks."""

    def __init__(self, layer: nn.Module, x: Tensor, heard: Callable[[Tensor], Tensor]) -> None:
        super().__init__(layer, x)
        self.heard = heard

    def project(self, feedback: Tensor, error: Tensor) -> Tensor:
        return (self.heard(error) @ feedback)[None]


class RNNLayer(Unrolled):
    step, step_back = RNN.step, RNN.step_back


class LSTMLayer(Unrolled):
    step, step_back = LSTM.step, LSTM.step_back


class GRULayer(Unrolled):
    step, step_back = GRU.step, GRU.step_back


def sigmoid(z: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-z))


LAYERS: dict[type[nn.Module], type[Layer]] = {
    nn.Linear: Affine,
    nn.Bilinear: Bilinear,
    nn.Conv1d: Convolution,
    nn.Conv2d: Convolution,
    nn.Conv3d: Convolution,
    nn.ConvTranspose1d: TransposedConvolution,
    nn.ConvTranspose2d: TransposedConvolution,
    nn.ConvTranspose3d: TransposedConvolution,
    nn.MultiheadAttention: Attention,
    nn.RNNCell: RNN,
    nn.LSTMCell: LSTM,
    nn.GRUCell: GRU,
    nn.RNN: RNNLayer,
    nn.LSTM: LSTMLayer,
    nn.GRU: GRULayer,
}

# Types of libraries that need not be installed: without them they are not registered either.
with contextlib.suppress(ImportError):
    from transformers.pytorch_utils import Conv1D

    LAYERS[Conv1D] = TransposedLinear

with contextlib.suppress(ImportError):
    from timm.layers import Conv2dSame
    from timm.layers.linear import Linear

    LAYERS |= {Linear: Affine, Conv2dSame: SamePadded}
