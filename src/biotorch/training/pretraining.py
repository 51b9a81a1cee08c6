"""Training on noise before the first epoch, which aligns forward weights and feedback before there are data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from biotorch import _seeding
from biotorch.data import Dataset
from biotorch.errors import Stopped
from biotorch.training.distributed import any_process
from biotorch.training.losses import label_count, training_loss
from biotorch.training.settings import NoiseConfig
from biotorch.training.state import TrainingState


class Batch(NamedTuple):
    """One process's share of an update on noise."""

    inputs: Tensor
    labels: Tensor
    #: Number of labels of the update in all processes.
    whole: int


def batches(
    config: NoiseConfig, data: Dataset, seed: int, device: torch.device, rank: int, world: int
) -> Iterator[Batch]:
    """Draw this process's share of each update: inputs from N(0, 1), labels uniform over the classes.

    The targets of a regression are from N(0, 1), too, because they are standardised. The whole batch is a function of
    (seed, update). It does not depend on the number of processes that share it.
    """
    for update in range(config.updates):
        generator = _seeding.generator(_seeding.derive(seed, "noise", update))
        inputs = torch.randn(config.batch_size, *data.input_shape, generator=generator)
        shape = (config.batch_size, *data.train.labels.shape[1:])
        labels = (
            torch.randn(shape, generator=generator)
            if data.task == "regression"
            else torch.randint(data.num_outputs, shape, generator=generator)
        )
        yield Batch(inputs[rank::world].to(device), labels[rank::world].to(device), label_count(labels))


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
    norms = [module for module in trainer.model.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
    statistics = [{name: value.clone() for name, value in norm.named_buffers(recurse=False)} for norm in norms]
    trainer.model.train()
    shares = batches(config, trainer.data, trainer.seed, trainer.device, fabric.global_rank, fabric.world_size)
    for done, batch in enumerate(shares):
        trainer.observer.on_noise(done, config.updates)
        with trainer.teacher.tells(batch.labels, 1 / batch.whole):
            outputs = trainer.forward(batch.inputs)
        value = training_loss(trainer.loss, outputs, batch.labels)
        trainer.require_finite(value)
        optimizer.zero_grad()
        fabric.backward(value * (label_count(batch.labels) / batch.whole))
        trainer.clip_gradients(optimizer)
        optimizer.step()
        if any(any_process(fabric, trainer.observer.stop_now())):
            raise Stopped
    optimizer.zero_grad()
    for norm, before in zip(norms, statistics, strict=True):  # statistics of noise are useless for the data
        for name, value in before.items():
            norm.get_buffer(name).copy_(value)
