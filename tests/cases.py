"""Hypothesis strategies: small networks that show every setting of a layer type."""

from __future__ import annotations

from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor, nn


class Case(NamedTuple):
    model: nn.Sequential
    x: Tensor


@st.composite
def cases(draw, torch_type: type[nn.Module]) -> Case:
    """`torch_type` as a hidden layer, Tanh, and an output layer of another size; float64, an input to match."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    layer, size = draw(linears()) if torch_type is nn.Linear else draw(convolutions(torch_type))
    x = torch.randn(size, dtype=torch.float64)
    layer.double()
    hidden = layer(x)
    per_position = draw(st.booleans())
    if torch_type is nn.Linear:
        head, between = nn.Linear(hidden.shape[-1], draw(st.integers(1, 3))), nn.Flatten(1)
        if not per_position and hidden.dim() > 2:
            head = nn.Linear(hidden[0].numel(), head.out_features)
        else:
            between = None
    else:
        batched = len(size) == len(layer.kernel_size) + 2
        if per_position:
            head, between = torch_type(layer.out_channels, draw(st.integers(1, 3)), 1), None
        else:
            features = hidden[0].numel() if batched else hidden.numel()
            head, between = nn.Linear(features, draw(st.integers(1, 3))), nn.Flatten(1 if batched else 0)
    steps = [layer, nn.Tanh(), between, head.double()]
    return Case(nn.Sequential(*(step for step in steps if step is not None)), x)


@st.composite
def linears(draw) -> tuple[nn.Linear, tuple[int, ...]]:
    layer = nn.Linear(draw(st.integers(1, 5)), draw(st.integers(1, 4)), bias=draw(st.booleans()))
    leading = draw(st.lists(st.integers(1, 3), min_size=0, max_size=3))
    return layer, (*leading, layer.in_features)


@st.composite
def convolutions(draw, torch_type: type[nn.Module]) -> tuple[nn.Module, tuple[int, ...]]:
    """The layer and an input size that it accepts."""
    dims = int(torch_type.__name__[-2])
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
    batch = draw(st.sampled_from([(), (1,), (2,)]))
    return layer, (*batch, channels[0], *size)
