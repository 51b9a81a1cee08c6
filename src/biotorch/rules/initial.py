"""Initializers of W and B, by the names of the paper (section 4)."""

from __future__ import annotations

import functools
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
    if init == "normal":
        fresh.normal_(generator=generator)
    else:
        bound = uniform_bound(fresh, init)
        fresh.uniform_(-bound, bound, generator=generator)
    with torch.no_grad():
        return tensor.copy_(fresh)


def uniform_bound(weight: Tensor, init: str) -> float:
    """Bound of the uniform distribution of `xavier` or `kaiming` for a weight of this shape.

    Raises:
        ValueError: `init` is another name.
    """
    fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(weight)
    if init == "xavier":
        return math.sqrt(6 / (fan_in + fan_out))
    if init == "kaiming":
        return 1 / math.sqrt(fan_in)
    raise unknown("initializer", init, INITS)


def draw_magnitudes(tensor: Tensor, init: str, generator: torch.Generator, scale: float = 1.0) -> Tensor:
    """Fill `tensor` in place with absolute values of the distribution of `draw`, times `scale`, and return it.

    Each value is the midpoint of one of 65,536 equally likely intervals, and none is zero. One random number of 64 bits
    holds four of them, because drawing would otherwise cost more than the rest of an update.
    """
    if tensor.is_meta:
        return tensor
    words = torch.empty(-(-tensor.numel() // 4), dtype=torch.int64, device=generator.device)
    words.random_(-(2**63), None, generator=generator)
    bits = words.view(torch.int16)[: tensor.numel()].view(tensor.shape)
    with torch.no_grad():
        if init == "normal":
            return tensor.copy_(_half_normal(words.device)[bits.int() + _HALF]).mul_(scale)
        step = scale * uniform_bound(tensor, init) / (2 * _HALF)
        return tensor.copy_(bits).mul_(step).add_(step * (_HALF + 0.5))


#: Half of the number of values of 16 bits.
_HALF = 1 << 15


@functools.lru_cache(maxsize=8)
def _half_normal(device: torch.device) -> Tensor:
    """The 65,536 midpoints of |N(0, 1)|."""
    share = (torch.arange(2 * _HALF, dtype=torch.float64) + 0.5) / (2 * _HALF)
    return (math.sqrt(2) * torch.erfinv(share)).float().to(device)


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
            bound = uniform_bound(weight, init)
            fresh = torch.empty(bias.shape, device=generator.device)
            bias.copy_(fresh.uniform_(-bound, bound, generator=generator))
        else:
            bias.zero_()


def scale(weight: Tensor, init: str) -> float | Tensor:
    """Standard deviation of a weight of this shape under `init`.

    `xavier`: sqrt(2 / (fan_in + fan_out)); `kaiming` (PyTorch's default): 1 / sqrt(3 fan_in); `normal`: 1;
    `weight`: the root mean square of W itself.
    """
    if init == "weight":
        return weight.detach().square().mean().sqrt()
    return 1.0 if init == "normal" else uniform_bound(weight, init) / math.sqrt(3)
