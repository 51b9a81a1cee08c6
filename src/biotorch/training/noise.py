"""Training on noise before the first epoch: forward weights and feedback meet before there is anything to learn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from biotorch import seeding
from biotorch.frozen import Section
from biotorch.training.infrastructure import any_process
from biotorch.training.observer import Stopped
from biotorch.training.outputs import training_loss

if TYPE_CHECKING:
    from biotorch.training.loop import Trainer


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


def pretrain(trainer: Trainer) -> None:
    """The phase of `trainer`, by its rule and a new optimizer. It has no checkpoint: interrupted, it begins anew.

    Raises:
        DivergenceError: a loss is not finite.
        Stopped: the observer asked for it.
    """
    config, fabric = trainer.config.noise_pretraining, trainer.fabric
    assert config is not None
    settings = trainer.config.optimizer.model_copy(update={} if config.lr is None else {"lr": config.lr})
    optimizer: Any = fabric.setup_optimizers(settings.build(p for p in trainer.model.parameters() if p.requires_grad))
    shape, classes = tuple(trainer.data.input_shape), trainer.data.num_classes
    trainer.model.train()
    for batch in batches(config, shape, classes, trainer.seed, trainer.device, fabric.global_rank, fabric.world_size):
        with trainer.teacher.tells(batch.labels, 1 / batch.whole):
            outputs = trainer.forward(batch.inputs)
        value = training_loss(trainer.loss, outputs, batch.labels)
        trainer.require_finite(value)
        optimizer.zero_grad()
        fabric.backward(value * (len(batch.labels) / batch.whole))
        optimizer.step()
        if any(any_process(fabric, trainer.observer.stop_now())):
            raise Stopped
    optimizer.zero_grad()
    for module in trainer.model.modules():  # statistics of noise are nobody's
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.reset_running_stats()
