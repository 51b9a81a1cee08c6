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
    """`training.hyperparameters`."""

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1, le=10**9)
    """Examples per forward pass, over all processes."""
    accumulate: int = Field(default=1, ge=1, le=10**9)
    """Batches per update of the weights: gradients are those of `accumulate * batch_size` examples."""


class MetricsConfig(Section):
    """`training.metrics`: what is tracked per epoch beside loss, error, learning rate and time."""

    model_config = ConfigDict(populate_by_name=True)

    top_k: int = Field(default=1, ge=1)
    """Also report the error where the label is not among the k highest outputs."""
    display_iterations: int | None = Field(default=None, ge=1)
    """Also print a line every so many updates where there is no terminal for a live display."""
    weight_alignment: bool = Field(default=False, validation_alias=AliasChoices("weight_alignment", "layer_alignment"))
    """Angle between W and B per layer (the first system's files say `layer_alignment`)."""
    weight_ratio: bool = False
    """|B| / |W| per layer."""
    gradient_alignment: bool = False
    """Angle between update and true gradient per layer, on one fixed batch."""

    @model_validator(mode="before")
    @classmethod
    def _one_spelling(cls, values: object) -> object:
        if isinstance(values, dict) and {"weight_alignment", "layer_alignment"} <= values.keys():
            raise SectionError({"layer_alignment": "the same as weight_alignment: give one of them"})
        return values


class EarlyStop(Section):
    """`training.early_stop`: stop when the error on validation no longer falls."""

    patience: int = Field(ge=1)
    """Epochs in a row without a new lowest error."""
    min_delta: float = Field(default=0.0, ge=0)
    """Points that the error must fall by to count as lower."""

    def reached(self, errors: Sequence[float]) -> bool:
        """Whether to stop after epochs with these validation errors (%)."""
        lowest, waited = float("inf"), 0
        for error in errors:
            lowest, waited = (error, 0) if error < lowest - self.min_delta else (lowest, waited + 1)
        return waited >= self.patience


class NoiseConfig(Section):
    """`training.noise_pretraining`: updates on random images with random labels (Cheon, Lee & Paik 2024)."""

    updates: int = Field(ge=1)
    """Updates of the weights, with the rule and the optimizer of the training, before epoch one."""
    batch_size: int = Field(default=64, ge=2, le=10**9)
    """Examples per update, over all processes."""
    lr: float | None = Field(default=None, gt=0)
    """Learning rate of the phase, to which that of B keeps its ratio; default: the optimizer's."""

    def require_shares(self, world: int, smallest: int) -> None:
        """Raises SectionError unless each of `world` processes has that many examples of an update."""
        if self.batch_size < world * smallest:
            text = f"{self.batch_size} examples for {world} processes, each of which needs {smallest}: give more"
            raise SectionError({"noise_pretraining.batch_size": text})


class TrainingConfig(Section):
    """`training`."""

    hyperparameters: Hyperparameters
    optimizer: OptimizerConfig
    lr_scheduler: SchedulerConfig | None = None
    warmup_epochs: float = Field(default=0.0, ge=0)
    """Epochs over which the learning rate rises linearly to its value; a fraction is welcome."""
    clip_gradient_norm: float | None = Field(default=None, gt=0)
    """Scale the gradients of an update down so that those of the network have this norm; B's are not counted."""
    noise_pretraining: NoiseConfig | None = None
    """Train on noise before epoch one."""
    early_stop: EarlyStop | None = None
    adversarial: AdversarialConfig | None = None
    metrics: MetricsConfig = MetricsConfig()

    @model_validator(mode="after")
    def _warm_up_ends(self) -> TrainingConfig:
        if self.warmup_epochs > self.hyperparameters.epochs:
            raise SectionError({"warmup_epochs": f"more than the {self.hyperparameters.epochs} epochs of training"})
        return self

    @model_validator(mode="after")
    def _scheduler_goes_with_the_optimizer(self) -> TrainingConfig:
        optimizer = self.optimizer.build([nn.Parameter(torch.zeros(2, 2))])
        Schedule(optimizer, self.lr_scheduler, self.hyperparameters.epochs, updates_per_epoch=1)
        return self


class InfrastructureConfig(Section):
    """`infrastructure`."""

    gpus: int | list[int] = -1
    """-1 is the CPU, another number a CUDA device, a list several of them."""
    num_nodes: int = Field(default=1, ge=1)
    """Machines; each is started by Slurm or torchrun."""
    strategy: Literal["auto", "ddp"] = "auto"
    """`auto`: DDP where there are several processes."""
    precision: Literal["32", "bf16-mixed", "16-mixed"] = "32"
    compile: bool = False
    """Compile the network with torch.compile."""
    channels_last: bool = True
    """Keep images and convolutions in the memory format that is fast on CPUs and tensor cores."""
    threads: int | None = Field(default=None, ge=1, le=4096)
    """CPU threads per process; default: PyTorch's, written into the resolved configuration, because the
    last bits of a sum depend on it."""
    checkpoint_seconds: float = Field(default=60.0, ge=0)
    """Seconds between checkpoints; 0: after every update. Ctrl-C and SIGTERM write one at once."""

    @field_validator("precision", mode="before")
    @classmethod
    def _number_or_name(cls, value: object) -> object:
        return "32" if value == 32 and not isinstance(value, bool) else value

    @field_validator("gpus", mode="before")
    @classmethod
    def _numbers(cls, gpus: object) -> object:
        numbers = gpus if isinstance(gpus, list) else [gpus]
        if not all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
            raise ValueError(f"a number or a list of numbers, not {gpus!r}")
        return gpus

    @field_validator("gpus")
    @classmethod
    def _devices_exist(cls, gpus: int | list[int]) -> int | list[int]:
        if isinstance(gpus, list):
            if not gpus or min(gpus) < 0 or len(set(gpus)) != len(gpus):
                raise ValueError("a list names different CUDA devices: numbers from 0 on; -1 alone is the CPU")
        elif gpus < -1:
            raise ValueError("-1 is the CPU, a number from 0 on a CUDA device")
        return gpus
