"""Training: one loop, and optimizers and schedulers by name."""

from biotorch.training.loop import evaluate, fit
from biotorch.training.optimizers import OptimizerConfig, SchedulerConfig
from biotorch.training.settings import Hyperparameters, MetricsConfig, TrainingConfig

__all__ = [
    "Hyperparameters",
    "MetricsConfig",
    "OptimizerConfig",
    "SchedulerConfig",
    "TrainingConfig",
    "evaluate",
    "fit",
]
