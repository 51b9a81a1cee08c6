"""Training: one loop; devices, optimizers, schedulers and losses by name."""

from biotorch.training.adversarial import AdversarialConfig
from biotorch.training.divergence import DivergenceError
from biotorch.training.evaluation import evaluate
from biotorch.training.fitting import fit
from biotorch.training.infrastructure import InfrastructureConfig, launch
from biotorch.training.loop import Trainer
from biotorch.training.losses import LossConfig
from biotorch.training.observer import Observer, Record, Stopped
from biotorch.training.optimizers import OptimizerConfig
from biotorch.training.outputs import training_loss
from biotorch.training.random_state import ResumeError
from biotorch.training.schedules import SchedulerConfig
from biotorch.training.settings import Hyperparameters, MetricsConfig, TrainingConfig

__all__ = [
    "AdversarialConfig",
    "DivergenceError",
    "Hyperparameters",
    "InfrastructureConfig",
    "LossConfig",
    "MetricsConfig",
    "Observer",
    "OptimizerConfig",
    "Record",
    "ResumeError",
    "SchedulerConfig",
    "Stopped",
    "Trainer",
    "TrainingConfig",
    "evaluate",
    "fit",
    "launch",
    "training_loss",
]
