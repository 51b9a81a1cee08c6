"""Overwriting weights with noise and feedback with zeros, behind autograd's back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from biotorch.layers import FeedbackLayer


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
        noise[noise == 0] = 1  # among millions there is one: it would have no sign
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


@contextlib.contextmanager
def silenced(layers: Iterable[FeedbackLayer]) -> Iterator[None]:
    """The feedback of `layers` is zero; that of others stays, also where all share one matrix."""
    silent = [each for layer in layers for each in layer.connections]
    tensors = {id(tensor): tensor for each in silent for tensor in each.tensors.values()}
    columns = [each.columns for each in silent]
    try:
        for each in silent:
            each.columns = None if each.columns is None else each.columns._replace(scale=0.0)
        with overwritten((tensor, torch.zeros_like(tensor)) for tensor in tensors.values()):
            yield
    finally:
        for each, own in zip(silent, columns, strict=True):
            each.columns = own
