"""Imperfect feedback, as analog hardware has it: B with few bits, with dead entries, and read with noise."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from biotorch import _seeding


class Imperfection(NamedTuple):
    """Way in which the backward pass reads B. The stored B stays exact.

    Attributes:
        bits: number of bits of each entry, see `quantised`; None for all of them.
        live: 1 for entries that work and 0 for dead ones, in the shape of B; None if all work.
        noise: standard deviation of the factors N(1, noise^2) of the entries.
        draw: seed and number of the use for which the factors are drawn, (2,) integers; None for no noise.
    """

    bits: int | None = None
    live: Tensor | None = None
    noise: float = 0.0
    draw: Tensor | None = None


def read(feedback: Tensor, imperfection: Imperfection | None) -> Tensor:
    """B as the backward pass reads it: quantised, without dead entries, times noise; B itself for None."""
    if imperfection is None:
        return feedback
    bits, live, noise, draw = imperfection
    if bits is not None:
        feedback = quantised(feedback, bits)
    if live is not None:
        feedback = feedback * live
    if draw is not None:
        factors: Tensor = read_noise(feedback, draw, noise)
        feedback = feedback * factors
    return feedback


def quantised(feedback: Tensor, bits: int) -> Tensor:
    """Round each entry to the nearest of 2^bits - 1 evenly spaced levels from -max |B| to max |B|, one of which is 0.

    One bit is the sign, at the mean magnitude of the entries that are not 0, which is the nearest such matrix
    (Rastegari et al. 2016, section 3.1). Zeros stay 0.
    """
    size = feedback.abs()
    if bits == 1:
        return feedback.sign() * (size.sum() / size.count_nonzero().clamp(min=1))
    step = size.amax() / ((1 << (bits - 1)) - 1)
    return (feedback / step.clamp(min=torch.finfo(step.dtype).tiny)).round() * step


def live_entries(like: Tensor, dead: float, generator: torch.Generator) -> Tensor:
    """1 in the places of `like` that work and 0 in a random share `dead` of them, exact up to rounding."""
    live = torch.ones_like(like)
    if not live.is_meta:
        order = torch.randperm(live.numel(), generator=generator, device=generator.device)
        places = order[: round(dead * live.numel())].to(live.device)
        live = live.flatten().index_fill(0, places, 0).view(live.shape)
    return live


@torch.library.custom_op("biotorch::next_draw", mutates_args=("counter",))
def next_draw(counter: Tensor) -> Tensor:
    """Copy of seed and number in `counter`, (2,), whose number then goes up by one.

    It is an operator, because a compiled graph copies the counter again in the backward, when it has gone up.
    """
    draw = counter.clone()
    counter[1] += 1
    return draw


@next_draw.register_fake
def _(counter: Tensor) -> Tensor:
    return torch.empty_like(counter)


@torch.library.custom_op("biotorch::read_noise", mutates_args=())
def read_noise(like: Tensor, draw: Tensor, deviation: float) -> Tensor:
    """Factors N(1, deviation^2) in the shape of `like`, from the seed and the number in `draw` alone.

    It is an operator, because a compiled graph cannot make a generator. On a GPU it waits for the device.
    """
    seed, number = draw.tolist()
    generator = _seeding.generator(_seeding.derive(seed, "noise", number), like.device)
    return torch.empty(like.shape, device=like.device).normal_(1, deviation, generator=generator).to(like.dtype)


@read_noise.register_fake
def _(like: Tensor, draw: Tensor, deviation: float) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype, device=like.device)
