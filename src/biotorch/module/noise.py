"""Overwriting weights with noise, behind autograd's back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Noise(NamedTuple):
    """What a weight matrix is overwritten with. Signs are random where the weight is zero."""

    weight: Tensor
    first: Tensor
    #: Independent of `first`.
    second: Tensor
    #: The magnitudes of `second` with the signs of `first`.
    signed: Tensor


def draw(weight: Tensor, generator: torch.Generator) -> Noise:
    """Noise of the norm of `weight`; of unit variance where that is zero."""
    norm = weight.detach().norm()

    def one() -> Tensor:
        noise = torch.randn(weight.shape, generator=generator).to(weight)
        return noise * (norm / noise.norm()) if norm > 0 else noise

    first, second = one(), one()
    return Noise(weight, first, second, second.abs() * first.sign())


@contextlib.contextmanager
def overwritten(pairs: Iterable[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Through `.data`, so that autograd does not notice."""
    pairs = list(pairs)
    saved = [tensor.detach().clone() for tensor, _ in pairs]
    try:
        for tensor, value in pairs:
            tensor.data.copy_(value)
        yield
    finally:
        for (tensor, _), value in zip(pairs, saved, strict=True):
            tensor.data.copy_(value)
