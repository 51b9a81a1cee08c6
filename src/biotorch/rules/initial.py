"""Initializers of W and B, by the names of the paper (section 4)."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from biotorch._names import unknown

Init = Literal["xavier", "kaiming", "normal"]
FeedbackInit = Literal["xavier", "kaiming", "normal", "weight"]

#: Valid values of `init`, for W and B.
INITS: tuple[str, ...] = get_args(Init)
#: Valid values of `feedback_init`: those of `init`, and `weight`, which starts B at W.
FEEDBACK_INITS: tuple[str, ...] = get_args(FeedbackInit)


def check(option: str, name: str | None, valid: tuple[str, ...]) -> None:
    """Raise ValueError, with the nearest valid name, unless `name` is None or valid."""
    if name is not None and name not in valid:
        raise unknown(option, name, valid)


def draw(tensor: Tensor, init: str, generator: torch.Generator) -> Tensor:
    """Fill `tensor` (two or more dimensions) in place and return it.

    `xavier`: Xavier uniform (Glorot & Bengio 2010); `kaiming`: PyTorch's default,
    U(-1/sqrt(fan_in), 1/sqrt(fan_in)); `normal`: N(0, 1). The values depend on the generator and the
    shape alone, not on type, memory format or device of `tensor` (a CPU generator fills a tensor on any device).
    """
    if tensor.is_meta:
        return tensor
    fresh = torch.empty(tensor.shape, device=generator.device)
    if init == "xavier":
        nn.init.xavier_uniform_(fresh, generator=generator)
    elif init == "kaiming":
        nn.init.kaiming_uniform_(fresh, a=math.sqrt(5), generator=generator)
    elif init == "normal":
        nn.init.normal_(fresh, generator=generator)
    else:
        raise unknown("initializer", init, INITS)
    with torch.no_grad():
        return tensor.copy_(fresh)


def thinned(feedback: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Set all but a share `density` of the entries to zero; a density of 1 returns `feedback` itself.

    The first dimension of B counts the units at which the error arrives. Of the n entries that carry it to one place of
    the layer's input, density * n are kept, rounded up or down at random, so that few places go without feedback. If
    density = k / n, each place receives exactly k errors (Crafton et al. 2019).
    """
    if density == 1 or feedback.is_meta:
        return feedback
    order = torch.rand(feedback.shape, device=generator.device, generator=generator)
    rounding = torch.rand(feedback.shape[1:], device=generator.device, generator=generator)
    kept = order.argsort(0).argsort(0) + rounding < density * len(feedback)
    return feedback.masked_fill(~kept.to(feedback.device), 0)


def turned(drawn: Tensor, weight: Tensor, degrees: float) -> Tensor:
    """Turn `drawn`, without changing its norm, to an angle of `degrees` to `weight`: the B of a soft start."""
    if drawn.is_meta or weight.is_meta or not weight.any():  # there is no angle to zero
        return drawn
    with torch.no_grad():
        towards = weight.double() / weight.double().norm().clamp(min=1e-300)
        across = drawn.double() - (drawn.double() * towards).sum() * towards
        across = across / across.norm().clamp(min=1e-300)
        angle = math.radians(degrees)
        direction = math.cos(angle) * towards + math.sin(angle) * across
        return drawn.copy_(direction * drawn.double().norm())


def draw_unit(tensor: Tensor, init: str, generator: torch.Generator) -> Tensor:
    """Fill `tensor` in place from the distribution of `init`, scaled to variance 1, and return it."""
    if tensor.is_meta:
        return tensor
    fresh = torch.empty(tensor.shape, device=generator.device)
    if init == "normal":
        fresh.normal_(generator=generator)
    else:
        fresh.uniform_(-math.sqrt(3), math.sqrt(3), generator=generator)
    with torch.no_grad():
        return tensor.copy_(fresh)


def draw_bias(bias: Tensor, weight: Tensor, init: str, generator: torch.Generator) -> None:
    """Fill `bias` in place: PyTorch's default under `kaiming`, zero otherwise."""
    with torch.no_grad():
        if init == "kaiming" and not bias.is_meta:
            fan_in, _ = nn.init._calculate_fan_in_and_fan_out(weight)
            bound = 1 / math.sqrt(fan_in)
            fresh = torch.empty(bias.shape, device=generator.device)
            bias.copy_(nn.init.uniform_(fresh, -bound, bound, generator=generator))
        else:
            bias.zero_()


def scale(weight: Tensor, init: str) -> float | Tensor:
    """Standard deviation of a weight of this shape under `init`.

    `xavier`: sqrt(2 / (fan_in + fan_out)); `kaiming` (PyTorch's default): 1 / sqrt(3 fan_in); `normal`: 1;
    `weight`: the root mean square of W itself.
    """
    if init == "weight":
        return weight.detach().square().mean().sqrt()
    if init == "normal":
        return 1.0
    fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(weight)
    return math.sqrt(2 / (fan_in + fan_out)) if init == "xavier" else 1 / math.sqrt(3 * fan_in)
