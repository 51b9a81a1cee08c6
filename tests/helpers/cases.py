"""Hypothesis strategies: small networks that show every setting of a layer type."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class Case(NamedTuple):
    model: nn.Sequential
    inputs: Any  # a tensor, or a tuple of them where the first layer takes several


class Call(nn.Module):
    """Calls `layer`, which takes several inputs, with a tuple of them."""

    def __init__(self, layer: nn.Module, **options: Any) -> None:
        super().__init__()
        self.layer, self.options = layer, options


class Pair(Call):
    """A bilinear layer on (x, y)."""

    def forward(self, inputs: tuple[Tensor, Tensor]) -> Tensor:
        return self.layer(*inputs)


class Attend(Call):
    """Attention on (query, key, value), whose output is given batch first in any case; `options` are its masks."""

    def forward(self, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        y, _ = self.layer(*inputs, **self.options)
        return y if y.dim() == 2 or self.layer.batch_first else y.transpose(0, 1)


class Unroll(Call):
    """A cell on (x, *states), x (N, T, in) or (T, in): all hidden states, (N, T, hidden)."""

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        x, *states = inputs
        lstm = isinstance(self.layer, nn.LSTMCell)
        state: Any = (tuple(states) if lstm else states[0]) if states else None
        hidden = []
        for step in x.unbind(-2):
            state = self.layer(step, state)
            hidden.append(state[0] if lstm else state)
        return torch.stack(hidden, -2)


class Run(Call):
    """A recurrent layer on (x, *states), packed if `lengths` are given: outputs padded, and batch first in any case."""

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        x, *states = inputs
        state: Any = (tuple(states) if isinstance(self.layer, nn.LSTM) else states[0]) if states else None
        batch_first, lengths = self.layer.batch_first, self.options["lengths"]
        if lengths is None:
            y, _ = self.layer(x, state)
            return y if y.dim() == 2 or batch_first else y.transpose(0, 1)
        in_order = lengths == sorted(lengths, reverse=True)
        packed = pack_padded_sequence(x, torch.tensor(lengths), batch_first, enforce_sorted=in_order)
        return pad_packed_sequence(self.layer(packed, state)[0], batch_first=True)[0]


@st.composite
def cases(draw, torch_type: type[nn.Module]) -> Case:
    """`torch_type` as a hidden layer, Tanh, and an output layer of another size; float64, an input to match."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    if torch_type is nn.MultiheadAttention:
        return draw(attentions())
    if torch_type in (nn.RNNCell, nn.LSTMCell, nn.GRUCell):
        return draw(cells(torch_type))
    if torch_type in (nn.RNN, nn.LSTM, nn.GRU):
        return draw(recurrent_layers(torch_type))
    if (
        torch_type.__name__.startswith("Conv") and torch_type.__name__ != "Conv1D"
    ):  # that is Hugging Face's linear layer
        return draw(convolutions(torch_type))
    return draw(matrices(torch_type))


def randn(*size: int) -> Tensor:
    return torch.randn(size, dtype=torch.float64)


@st.composite
def with_head(draw, hidden: nn.Module, inputs: Any, batched: bool = True) -> Case:
    """An output layer at every position of what `hidden` gives, or one on all of an example's positions."""
    hidden.double()
    shape = hidden(inputs).shape
    flat = draw(st.booleans()) and len(shape) > 1 + batched
    start = 1 if batched else 0
    features = shape[start:].numel() if flat else shape[-1]
    head = nn.Linear(features, draw(st.integers(1, 3))).double()
    return Case(nn.Sequential(hidden, nn.Tanh(), *([nn.Flatten(start)] if flat else []), head), inputs)


@st.composite
def matrices(draw, torch_type: type[nn.Module]) -> Case:
    """Linear, timm's Linear, Bilinear, Hugging Face's Conv1D, on any number of leading dimensions."""
    sizes = [draw(st.integers(1, 4)) for _ in range(3)]
    leading = draw(st.lists(st.integers(1, 3), min_size=0, max_size=3))
    if torch_type is nn.Bilinear:
        layer = nn.Bilinear(*sizes, bias=draw(st.booleans()))
        return draw(with_head(Pair(layer), (randn(*leading, sizes[0]), randn(*leading, sizes[1]))))
    if torch_type.__name__ == "Conv1D":  # (outputs, inputs)
        return draw(with_head(torch_type(*sizes[:2]), randn(*leading, sizes[1])))
    return draw(with_head(torch_type(*sizes[:2], bias=draw(st.booleans())), randn(*leading, sizes[0])))


@st.composite
def attentions(draw) -> Case:
    """Self or cross attention, batch first or not or unbatched, kdim and vdim, every kind of mask."""
    heads = draw(st.integers(1, 2))
    size = heads * draw(st.integers(1, 2))
    n, t, s = (draw(st.integers(1, 3)) for _ in range(3))
    read = draw(st.sampled_from(["self", "memory", "query is key", "three", "kdim and vdim"]))
    sizes = {"kdim": draw(st.integers(1, 3)), "vdim": draw(st.integers(1, 3))} if read == "kdim and vdim" else {}
    batched, batch_first = draw(st.booleans()), draw(st.booleans())
    assume(batch_first or not batched or n != t)  # refused: nothing tells examples from positions
    layer = nn.MultiheadAttention(size, heads, bias=draw(st.booleans()), batch_first=batch_first, **sizes)

    def sequence(length: int, features: int) -> Tensor:
        return randn(*((n, length) if batch_first else (length, n)) if batched else (length,), features)

    query = sequence(t, size)
    key = query if read in ("self", "query is key") else sequence(s, sizes.get("kdim", size))
    s = t if key is query else s
    value = key if read in ("self", "memory") else sequence(s, sizes.get("vdim", size))
    mask_shape = draw(st.sampled_from([(t, s), ((n if batched else 1) * heads, t, s)]))
    options = {
        "attn_mask": draw(masks(mask_shape)),
        "key_padding_mask": draw(masks((n, s) if batched else (s,))),
        "need_weights": draw(st.booleans()),
    }
    return draw(with_head(Attend(layer, **options), (query, key, value), batched))


@st.composite
def masks(draw, shape: tuple[int, ...]) -> Tensor | None:
    """None, numbers or hidden positions; the first position is never hidden, for softmax needs one."""
    kind = draw(st.sampled_from(["none", "float", "boolean"]))
    if kind == "none":
        return None
    if kind == "float":
        return randn(*shape)
    hidden = torch.rand(shape) < 0.5
    hidden[..., 0] = False
    return hidden


@st.composite
def cells(draw, torch_type: type[nn.Module]) -> Case:
    """A cell over a few steps, from given states or from zero."""
    sizes = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    options = {"nonlinearity": draw(st.sampled_from(["tanh", "relu"]))} if torch_type is nn.RNNCell else {}
    layer = torch_type(*sizes, bias=draw(st.booleans()), **options)
    n, t, batched = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.booleans())
    leading = (n,) if batched else ()
    count = draw(st.sampled_from([0, 2 if torch_type is nn.LSTMCell else 1]))
    states = [randn(*leading, sizes[1]) for _ in range(count)]
    return draw(with_head(Unroll(layer), (randn(*leading, t, sizes[0]), *states), batched))


@st.composite
def recurrent_layers(draw, torch_type: type[nn.Module]) -> Case:
    """Any depth, one or both directions, batch first or not, unbatched, packed, from given states or from zero."""
    features, hidden, depth = (draw(st.integers(1, 2)) for _ in range(3))
    options = {"nonlinearity": draw(st.sampled_from(["tanh", "relu"]))} if torch_type is nn.RNN else {}
    both, batch_first, kind = draw(st.booleans()), draw(st.booleans()), draw(st.sampled_from(["", "packed", "single"]))
    options |= {"bias": draw(st.booleans()), "bidirectional": both, "batch_first": batch_first}
    n, t = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    assume(batch_first or kind == "single" or n != t)  # refused: nothing tells examples from steps
    lengths = [draw(st.integers(1, t)) for _ in range(n - 1)]
    lengths.insert(draw(st.integers(0, n - 1)), t)
    batch = () if kind == "single" else (n,)
    count = draw(st.sampled_from([0, 2 if torch_type is nn.LSTM else 1]))
    states = [randn(depth * (1 + both), *batch, hidden) for _ in range(count)]
    x = randn(*((*batch, t) if batch_first else (t, *batch)), features)
    run = Run(torch_type(features, hidden, depth, **options), lengths=lengths if kind == "packed" else None)
    return draw(with_head(run, (x, *states), batched=kind != "single"))


@st.composite
def convolutions(draw, torch_type: type[nn.Module]) -> Case:
    """A convolution of any setting and an input size that it accepts, under a convolution or a linear layer."""
    layer, size = draw(convolution_layers(torch_type))
    x = randn(*size)
    batched = len(size) == len(layer.kernel_size) + 2
    hidden = layer.double()(x)
    outputs = draw(st.integers(1, 3))
    if draw(st.booleans()):
        return Case(nn.Sequential(layer, nn.Tanh(), torch_type(layer.out_channels, outputs, 1).double()), x)
    features = hidden[0].numel() if batched else hidden.numel()
    flatten = nn.Flatten(1 if batched else 0)
    return Case(nn.Sequential(layer, nn.Tanh(), flatten, nn.Linear(features, outputs).double()), x)


@st.composite
def convolution_layers(draw, torch_type: type[nn.Module]) -> tuple[nn.Module, tuple[int, ...]]:
    """The layer and an input size that it accepts."""
    same = torch_type.__name__ == "Conv2dSame"  # timm's
    dims = 2 if same else int(torch_type.__name__[-2])
    per_axis = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(dims))  # noqa: E731
    groups = draw(st.integers(1, 3))
    channels = [groups * draw(st.integers(1, 2)) for _ in range(2)]
    kernel, dilation = per_axis(1, 3), per_axis(1, 2)
    options = {"dilation": dilation, "groups": groups, "bias": draw(st.booleans())}
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if torch_type.__name__.startswith("ConvTranspose"):
        options["stride"] = per_axis(1, 3)
        options["padding"] = per_axis(0, 1)
        options["output_padding"] = tuple(
            draw(st.integers(0, max(s, d) - 1)) for s, d in zip(options["stride"], dilation, strict=True)
        )
        size = per_axis(2, 3 if dims > 1 else 6)
        size = tuple(max(s, 2 * p + 1) for s, p in zip(size, options["padding"], strict=True))
    elif same:
        options["stride"], size = per_axis(1, 3), per_axis(2, 6)
    else:
        options["padding_mode"] = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
        options["padding"] = draw(st.sampled_from(["same", "valid", "numbers"]))
        if options["padding"] == "numbers":
            options["padding"] = per_axis(0, 2)
        if options["padding"] != "same":  # torch refuses it with a stride
            options["stride"] = per_axis(1, 3)
        # Long enough for one output without padding, and for reflection, which needs size > padding.
        size = tuple(max(extra, r + 1, 3) for extra, r in zip(per_axis(2, 4 if dims == 3 else 6), reach, strict=True))
    layer = torch_type(*channels, kernel, **options)
    batch = draw(st.sampled_from([(1,), (2,)] if same else [(), (1,), (2,)]))
    return layer, (*batch, channels[0], *size)
