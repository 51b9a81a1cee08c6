"""What a rule reads of W when its feedback learns: the part of an audit that no backward pass shows."""

from __future__ import annotations

import torch
from torch import Tensor

from biotorch import seeding
from biotorch.layers import Connection, FeedbackLayer
from biotorch.layers.updates import update_of
from biotorch.module.noise import draw
from biotorch.module.verdicts import LEAK
from biotorch.rules import Transports

#: Updates to look at: a rule may do something at the first, or at every so many: all to 16, and 1000, divide the last.
_NUMBERS = (1, 2, 720_720_000)


def learned_from_weights(layer: FeedbackLayer, seed: int) -> Transports:
    """Run the rule's `after_update` on copies of B, with noise in the place of W, and compare what B becomes.

    The connection's answer to activity (`Update.respond`) stays as it is: a rule that learns from that alone transports
    nothing.
    """
    if not layer.rule.has_update():
        return "nothing"
    return max((_copied(connection, seed) for connection in layer.connections), key=LEAK.__getitem__)


def _copied(connection: Connection, seed: int) -> Transports:
    noise = draw(connection.weight, seeding.generator(seed))

    def at(number: int) -> Transports:
        first, second, signed = (
            _learned(connection, weight, number) for weight in (noise.first, noise.second, noise.signed)
        )
        if _equal(first, second):
            return "nothing"
        return "signs" if _equal(first, signed) else "weights"

    return max(map(at, _NUMBERS), key=LEAK.__getitem__)


def _learned(connection: Connection, weight: Tensor, number: int) -> list[Tensor]:
    """B after an update in which the rule sees `weight` for W."""
    tensors = {part: tensor.detach().clone() for part, tensor in connection.tensors.items()}
    update = update_of(connection, weight, tensors, number, forward=connection.weight.detach())
    with torch.no_grad():
        connection.layer.rule.after_update(update)
    return list(tensors.values())


def _equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(map(torch.equal, first, second))
