"""Training on noise before the first epoch: forward weights and feedback meet before there is anything to learn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from biotorch import seeding
from biotorch.frozen import Section


class NoiseConfig(Section):
    """`training.noise_pretraining`: updates on random images with random labels (Cheon, Lee & Paik 2024)."""

    updates: int = Field(ge=1)
    """Updates of the weights, with the rule and the optimizer of the training, before epoch one."""
    batch_size: int = Field(default=64, ge=2, le=10**9)
    """Examples per update, over all processes."""
    lr: float | None = Field(default=None, gt=0)
    """Learning rate of the phase; default: the optimizer's."""


class Batch(NamedTuple):
    inputs: Tensor
    labels: Tensor
    #: Examples of the update over all processes.
    whole: int


def batches(
    config: NoiseConfig, shape: tuple[int, ...], classes: int, seed: int, device: torch.device, rank: int, world: int
) -> Iterator[Batch]:
    """This process's share of each update: inputs N(0, 1) of `shape`, labels uniform over the classes.

    A function of (seed, update) alone. Each batch is drawn whole: shares are those of one process's batches.
    """
    for update in range(config.updates):
        generator = seeding.generator(seeding.derive(seed, "noise", update))
        inputs = torch.randn(config.batch_size, *shape, generator=generator)
        labels = torch.randint(classes, (config.batch_size,), generator=generator)
        yield Batch(inputs[rank::world].to(device), labels[rank::world].to(device), config.batch_size)
