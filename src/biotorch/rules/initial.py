"""How W and B are drawn: the initializers of the paper (section 4) by name."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from biotorch._names import unknown

Init = Literal["xavier", "kaiming", "normal"]
FeedbackInit = Literal["xavier", "kaiming", "normal", "weight"]

#: What `init` accepts, for W and B.
INITS: tuple[str, ...] = get_args(Init)
#: What `feedback_init` accepts: the same, or B starts at W.
FEEDBACK_INITS: tuple[str, ...] = get_args(FeedbackInit)


def check(option: str, name: str | None, valid: tuple[str, ...]) -> None:
    """Raises ValueError, naming the nearest valid name, unless `name` is None or valid."""
    if name is not None and name not in valid:
        raise unknown(option, name, valid)


def draw(tensor: Tensor, init: str, generator: torch.Generator) -> Tensor:
    """Fill `tensor` (two or more dimensions) in place and return it.

    `xavier`: Xavier uniform (Glorot & Bengio 2010); `kaiming`: PyTorch's default,
    U(-1/sqrt(fan_in), 1/sqrt(fan_in)); `normal`: N(0, 1). Values depend on the generator and the
    shape alone, not on type, memory format or device of `tensor` (a CPU generator fills any).
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


def turned(drawn: Tensor, weight: Tensor, degrees: float) -> Tensor:
    """`drawn` turned, at its own norm, so that it has that angle to `weight`: B of a soft start."""
    if drawn.is_meta or weight.is_meta or not weight.any():  # nothing has an angle to zero
        return drawn
    with torch.no_grad():
        towards = weight.double() / weight.double().norm().clamp(min=1e-300)
        across = drawn.double() - (drawn.double() * towards).sum() * towards
        across = across / across.norm().clamp(min=1e-300)
        angle = math.radians(degrees)
        direction = math.cos(angle) * towards + math.sin(angle) * across
        return drawn.copy_(direction * drawn.double().norm())


def draw_unit(tensor: Tensor, init: str, generator: torch.Generator) -> Tensor:
    """Fill `tensor` in place with the distribution of `init` at variance 1, and return it."""
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
    """Fill `bias` in place: zero, except under `kaiming`, where it is PyTorch's default."""
    with torch.no_grad():
        if init == "kaiming" and not bias.is_meta:
            fan_in, _ = nn.init._calculate_fan_in_and_fan_out(weight)
            bound = 1 / math.sqrt(fan_in)
            fresh = torch.empty(bias.shape, device=generator.device)
            bias.copy_(nn.init.uniform_(fresh, -bound, bound, generator=generator))
        else:
            bias.zero_()


def scale(weight: Tensor, init: str) -> float | Tensor:
    """The standard deviation that `init` gives a weight of this shape.

    Xavier: sqrt(2 / (fan_in + fan_out)); kaiming (PyTorch's default): 1 / sqrt(3 fan_in); normal: 1;
    `weight`: the root mean square of W itself.
    """
    if init == "weight":
        return weight.detach().square().mean().sqrt()
    if init == "normal":
        return 1.0
    fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(weight)
    return math.sqrt(2 / (fan_in + fan_out)) if init == "xavier" else 1 / math.sqrt(3 * fan_in)
