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
    layers = list(layers)
    buffers = {id(b): b for layer in layers for each in layer.connections if (b := each.buffer) is not None}
    columns = [layer.feedback_columns for layer in layers]
    try:
        for layer, own in zip(layers, columns, strict=True):
            layer.feedback_columns = {name: part._replace(scale=0.0) for name, part in own.items()}
        with overwritten((buffer, torch.zeros_like(buffer)) for buffer in buffers.values()):
            yield
    finally:
        for layer, own in zip(layers, columns, strict=True):
            layer.feedback_columns = own
