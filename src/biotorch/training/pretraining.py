"""Training on noise before the first epoch, which aligns forward weights and feedback before there are data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from biotorch import _seeding
from biotorch.errors import Stopped
from biotorch.training.distributed import any_process
from biotorch.training.losses import training_loss
from biotorch.training.settings import NoiseConfig
from biotorch.training.state import TrainingState


class Batch(NamedTuple):
    """One process's share of an update on noise."""

    inputs: Tensor
    labels: Tensor
    #: Number of examples of the update in all processes.
    whole: int


def batches(
    config: NoiseConfig, shape: tuple[int, ...], classes: int, seed: int, device: torch.device, rank: int, world: int
) -> Iterator[Batch]:
    """Draw this process's share of each update: inputs of `shape` from N(0, 1), labels uniform over the classes.

    The whole batch is a function of (seed, update). It does not depend on the number of processes that share it.
    """
    for update in range(config.updates):
        generator = _seeding.generator(_seeding.derive(seed, "noise", update))
        inputs = torch.randn(config.batch_size, *shape, generator=generator)
        labels = torch.randint(classes, (config.batch_size,), generator=generator)
        yield Batch(inputs[rank::world].to(device), labels[rank::world].to(device), config.batch_size)


def pretrain(trainer: TrainingState) -> None:
    """Train the network of `trainer` on noise, with its rule and a new optimizer.

    This phase writes no checkpoint; after an interruption it starts again.

    Raises:
        DivergenceError: a loss is not finite.
        Stopped: the observer asked to stop.
    """
    config, fabric = trainer.config.noise_pretraining, trainer.fabric
    assert config is not None
    optimizer: Any = fabric.setup_optimizers(trainer.new_optimizer(config.lr))
    shape, classes = tuple(trainer.data.input_shape), trainer.data.num_outputs
    norms = [module for module in trainer.model.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
    statistics = [{name: value.clone() for name, value in norm.named_buffers(recurse=False)} for norm in norms]
    trainer.model.train()
    shares = batches(config, shape, classes, trainer.seed, trainer.device, fabric.global_rank, fabric.world_size)
    for done, batch in enumerate(shares):
        trainer.observer.on_noise(done, config.updates)
        with trainer.teacher.tells(batch.labels, 1 / batch.whole):
            outputs = trainer.forward(batch.inputs)
        value = training_loss(trainer.loss, outputs, batch.labels)
        trainer.require_finite(value)
        optimizer.zero_grad()
        fabric.backward(value * (len(batch.labels) / batch.whole))
        trainer.clip_gradients(optimizer)
        optimizer.step()
        if any(any_process(fabric, trainer.observer.stop_now())):
            raise Stopped
    optimizer.zero_grad()
    for norm, before in zip(norms, statistics, strict=True):  # statistics of noise are useless for the data
        for name, value in before.items():
            norm.get_buffer(name).copy_(value)
