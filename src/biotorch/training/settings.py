"""The sections `training` and `infrastructure` of a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import AliasChoices, ConfigDict, Field, field_validator, model_validator
from torch import nn

from biotorch._sections import Section
from biotorch.errors import SectionError
from biotorch.training.adversarial import AdversarialConfig
from biotorch.training.optimizers import OptimizerConfig
from biotorch.training.schedules import Schedule, SchedulerConfig


class Hyperparameters(Section):
    """`training.hyperparameters`: length of the training and size of an update.

    Examples:
        >>> biotorch.training.Hyperparameters(epochs=10, batch_size=32).accumulate
        1
    """

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1, le=10**9)
    """Examples per forward pass, over all processes."""
    accumulate: int = Field(default=1, ge=1, le=10**9)
    """Batches per update of the weights: an update takes the gradient of `accumulate * batch_size` examples."""


class MetricsConfig(Section):
    """`training.metrics`: figures to record per epoch besides loss, error, learning rate and time.

    Examples:
        >>> biotorch.training.MetricsConfig(weight_alignment=True).gradient_alignment
        False
    """

    model_config = ConfigDict(populate_by_name=True)

    top_k: int = Field(default=1, ge=1)
    """If greater than 1, also report the top-k error: how often the label is not among the k highest outputs (%)."""
    display_iterations: int | None = Field(default=None, ge=1)
    """Number of updates after which a line is printed if there is no terminal for the live display."""
    weight_alignment: bool = Field(default=False, validation_alias=AliasChoices("weight_alignment", "layer_alignment"))
    """Alignment angle between W and B per layer (`layer_alignment` in the first system's files)."""
    weight_ratio: bool = False
    """Norm ratio |B| / |W| per layer."""
    gradient_alignment: bool = False
    """Gradient angle, between the rule's gradient and the true one, of each layer on one fixed batch."""

    @model_validator(mode="before")
    @classmethod
    def _one_spelling(cls, values: object) -> object:
        if isinstance(values, dict) and {"weight_alignment", "layer_alignment"} <= values.keys():
            raise SectionError({"layer_alignment": "the same as weight_alignment: give only one of them"})
        return values


class EarlyStop(Section):
    """`training.early_stop`: stop when the validation error no longer falls; in a regression, the validation loss."""

    patience: int = Field(ge=1)
    """Epochs in a row without a new lowest value after which the training stops."""
    min_delta: float = Field(default=0.0, ge=0)
    """Smallest fall that counts as an improvement, in percentage points of the error, or in the loss's unit."""

    def reached(self, values: Sequence[float]) -> bool:
        """Whether to stop after epochs with these values on the validation set."""
        lowest, waited = float("inf"), 0
        for value in values:
            lowest, waited = (value, 0) if value < lowest - self.min_delta else (lowest, waited + 1)
        return waited >= self.patience


class NoiseConfig(Section):
    """`training.noise_pretraining`: updates on random inputs with random labels (Cheon, Lee & Paik 2024)."""

    updates: int = Field(ge=1)
    """Updates of the weights, with the rule and the optimizer of the training, before epoch one."""
    batch_size: int = Field(default=64, ge=2, le=10**9)
    """Examples per update, over all processes."""
    lr: float | None = Field(default=None, gt=0)
    """Learning rate of W on noise; default: the optimizer's. The rate of B keeps its ratio to it."""

    def require_shares(self, world: int, smallest: int) -> None:
        """Raise SectionError unless each of `world` processes gets at least `smallest` examples of an update."""
        if self.batch_size < world * smallest:
            text = f"{self.batch_size} examples are too few for {world} processes: each needs {smallest}"
            raise SectionError({"noise_pretraining.batch_size": text})


class TrainingConfig(Section):
    """`training`: optimizer, schedule, and everything else that shapes the updates.

    Examples:
        >>> biotorch.training.TrainingConfig(
        ...     hyperparameters={"epochs": 10, "batch_size": 32}, optimizer={"type": "SGD", "lr": 0.1, "momentum": 0.9}
        ... ).warmup_epochs
        0.0
    """

    hyperparameters: Hyperparameters
    optimizer: OptimizerConfig
    lr_scheduler: SchedulerConfig | None = None
    warmup_epochs: float = Field(default=0.0, ge=0)
    """Epochs during which the learning rate rises linearly to its value; may be a fraction."""
    clip_gradient_norm: float | None = Field(default=None, gt=0)
    """Largest norm of an update's gradients, without B's gradients; above it, all are scaled down by one factor."""
    noise_pretraining: NoiseConfig | None = None
    """Train on noise before the first epoch."""
    early_stop: EarlyStop | None = None
    adversarial: AdversarialConfig | None = None
    metrics: MetricsConfig = MetricsConfig()

    @model_validator(mode="after")
    def _warm_up_ends(self) -> TrainingConfig:
        if self.warmup_epochs > self.hyperparameters.epochs:
            raise SectionError(
                {"warmup_epochs": f"must not exceed the {self.hyperparameters.epochs} epochs of training"}
            )
        return self

    @model_validator(mode="after")
    def _scheduler_goes_with_the_optimizer(self) -> TrainingConfig:
        optimizer = self.optimizer.build([nn.Parameter(torch.zeros(2, 2))])
        Schedule(optimizer, self.lr_scheduler, self.hyperparameters.epochs, updates_per_epoch=1)
        return self


class InfrastructureConfig(Section):
    """`infrastructure`: devices, processes and precision of a run.

    Examples:
        >>> config = biotorch.training.InfrastructureConfig(threads=2)
        >>> config.gpus, config.precision
        (-1, '32')
    """

    gpus: int | list[int] = -1
    """-1 for the CPU, another number for one CUDA device, a list of numbers for several."""
    num_nodes: int = Field(default=1, ge=1)
    """Number of machines; Slurm or torchrun has to start the processes on each of them."""
    strategy: Literal["auto", "ddp"] = "auto"
    """`auto` is DDP if there are several processes; `ddp` is DDP always."""
    precision: Literal["32", "bf16-mixed", "16-mixed"] = "32"
    compile: bool = False
    """Compile the network with torch.compile. Under a direct rule every layer breaks the graph, which can cost time."""
    channels_last: bool = True
    """Keep images and convolutions in channels_last memory format, which is fast on CPUs and tensor cores."""
    threads: int | None = Field(default=None, ge=1, le=4096)
    """CPU threads per process; default: PyTorch's number. It is written into the resolved configuration, because the
    last bits of a sum depend on it."""
    checkpoint_seconds: float = Field(default=60.0, ge=0)
    """Seconds between checkpoints; 0: one after every update. Ctrl-C and SIGTERM write one at once."""

    @field_validator("precision", mode="before")
    @classmethod
    def _number_or_name(cls, value: object) -> object:
        return "32" if value == 32 and not isinstance(value, bool) else value

    @field_validator("gpus", mode="before")
    @classmethod
    def _numbers(cls, gpus: object) -> object:
        numbers = gpus if isinstance(gpus, list) else [gpus]
        if not all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
            raise ValueError(f"a number or a list of numbers is needed, not {gpus!r}")
        return gpus

    @field_validator("gpus")
    @classmethod
    def _devices_exist(cls, gpus: int | list[int]) -> int | list[int]:
        if isinstance(gpus, list):
            if not gpus or min(gpus) < 0 or len(set(gpus)) != len(gpus):
                raise ValueError(
                    "a list must hold the numbers of different CUDA devices, from 0 on; for the CPU give -1, not a list"
                )
        elif gpus < -1:
            raise ValueError("must be -1 for the CPU, or the number of a CUDA device, from 0 on")
        return gpus
