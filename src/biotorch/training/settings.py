"""The `training` section of a configuration."""

from __future__ import annotations

from pydantic import AliasChoices, ConfigDict, Field

from biotorch.frozen import Section
from biotorch.training.optimizers import OptimizerConfig, SchedulerConfig


class Hyperparameters(Section):
    """`training.hyperparameters`."""

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)


class MetricsConfig(Section):
    """`training.metrics`: what is tracked per epoch beside loss and error."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    #: Also report the error where the label is not among the k highest outputs.
    top_k: int = Field(default=1, ge=1)
    #: Of the paper's files; accepted, without effect yet: progress is shown per epoch.
    display_iterations: int = Field(default=500, ge=1)
    #: Angle between W and B per layer (the first system's files say `layer_alignment`).
    weight_alignment: bool = Field(default=False, validation_alias=AliasChoices("weight_alignment", "layer_alignment"))
    #: |B| / |W| per layer.
    weight_ratio: bool = False
    #: Angle between update and true gradient per layer, on one fixed batch.
    gradient_alignment: bool = False


class TrainingConfig(Section):
    """`training`."""

    hyperparameters: Hyperparameters
    optimizer: OptimizerConfig
    lr_scheduler: SchedulerConfig | None = None
    metrics: MetricsConfig = MetricsConfig()
