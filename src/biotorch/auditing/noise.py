"""Interventions of the audit: noise in place of weights, zeros in place of feedback, updates of a copied B."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from biotorch import _seeding
from biotorch.auditing.verdicts import LEAK
from biotorch.layers import Connection, FeedbackLayer, connections, is_feedback
from biotorch.layers.updates import update_of
from biotorch.rules import Transports


class Noise(NamedTuple):
    """Noise tensors that overwrite one weight matrix; none of their elements is zero, so that each has a sign."""

    weight: Tensor
    first: Tensor
    #: Independent of `first`.
    second: Tensor
    #: The magnitudes of `second` with the signs of `first`.
    signed: Tensor


def draw(weight: Tensor, generator: torch.Generator) -> Noise:
    """Draw noise with the norm of `weight`, or of unit variance if `weight` is zero."""
    norm = weight.detach().norm()

    def one() -> Tensor:
        noise = torch.randn(weight.shape, generator=generator).to(weight)
        noise[noise == 0] = 1  # a zero, which occurs among millions of draws, would have no sign
        return noise * (norm / noise.norm()) if norm > 0 else noise

    first, second = one(), one()
    return Noise(weight, first, second, second.abs() * first.sgn())


@contextlib.contextmanager
def overwritten(pairs: Iterable[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Overwrite the first tensor of each pair with the second inside the `with` block.

    It writes through `.data`, so that autograd does not notice.
    """
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
    """Set the feedback of `layers` to zero inside the `with` block.

    The feedback of other layers stays, even if all share one matrix.
    """
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


#: Numbers of the updates to test. A rule may act only at the first update or at every n-th; the last number is
#: divisible by every n up to 16, and by 100 and 1000.
_NUMBERS = (1, 2, 720_720_000)


def learned_from_weights(layer: FeedbackLayer, seed: int) -> Transports:
    """Run the rule's `after_update` on copies of B with noise in the place of W, and compare the results.

    The layer's response to activity (`Update.respond`) still uses W, so a rule that learns from activity alone
    transports nothing.
    """
    if not layer.rule.has_update():
        return "nothing"
    return max((_copied(connection, seed) for connection in layer.connections), key=LEAK.__getitem__)


def _copied(connection: Connection, seed: int) -> Transports:
    noise = draw(connection.weight, _seeding.generator(seed))

    def at(number: int) -> Transports:
        first, second, signed = (
            _learned(connection, weight, number) for weight in (noise.first, noise.second, noise.signed)
        )
        if _equal(first, second):
            return "nothing"
        return "signs" if _equal(first, signed) else "weights"

    return max(map(at, _NUMBERS), key=LEAK.__getitem__)


def _learned(connection: Connection, weight: Tensor, number: int) -> list[Tensor]:
    """The tensors of B after an update in which the rule sees `weight` in the place of W."""
    tensors = {part: tensor.detach().clone() for part, tensor in connection.tensors.items()}
    update = update_of(connection, weight, tensors, number, forward=connection.weight.detach())
    with torch.no_grad():
        connection.layer.rule.after_update(update)
    return list(tensors.values())


def _equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(map(torch.equal, first, second))


def after_steps(model: nn.Module, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every B that learns from a gradient, after two optimizer steps on copies of B and of the present W."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    learned: dict[str, Tensor] = {}
    for connection in connections(model).values():
        if not connection.learned:
            continue
        copies = {}
        for parameter in (connection.trained, *connection.learned):
            name = names[id(parameter)]
            if name in gradients:
                copies[name] = nn.Parameter(parameter.detach().clone())
                copies[name].grad = gradients[name].clone()
        if copies:
            optimizer = torch.optim.SGD(copies.values(), lr=0.1, momentum=0.9, weight_decay=0.1)
            for _ in range(2):
                optimizer.step()
            learned.update({f"{name} after steps": copy for name, copy in copies.items() if is_feedback(name)})
    return learned
