"""Which examples make up each update, and which of them each process takes."""

from __future__ import annotations

import torch
from torch import Tensor

from biotorch import seeding


def updates(count: int, batch_size: int, accumulate: int, smallest: int, seed: int) -> list[Tensor]:
    """Indices of the examples of each update of one epoch, shuffled by `seed` alone.

    An update takes `accumulate` batches. A rest of the epoch of fewer than `smallest` examples is left
    out: statistics of a batch need two. Another epoch leaves out others.
    """
    shuffled = torch.randperm(count, generator=seeding.generator(seed))
    rest = count % batch_size
    if rest < smallest and count > rest:
        shuffled = shuffled[: count - rest]
    return list(torch.split(shuffled, batch_size * accumulate))


def shares(whole: list[Tensor], batch_size: int, rank: int, world: int) -> tuple[list[Tensor], list[int]]:
    """Of each batch of each update, what process `rank` of `world` takes, and how many examples that are.

    A process that would get none takes one of another, which counts 0.
    """
    batches = [batch for update in whole for batch in torch.split(update, batch_size)]
    mine = [batch[rank::world] for batch in batches]
    counts = [len(part) for part in mine]
    return [part if len(part) else batch[:1] for part, batch in zip(mine, batches, strict=True)], counts
