"""Training: one loop; devices, optimizers, schedulers and losses by name."""

from biotorch.errors import DivergenceError, ResumeError
from biotorch.training.adversarial import AdversarialConfig
from biotorch.training.distributed import InfrastructureConfig, launch
from biotorch.training.evaluation import evaluate
from biotorch.training.fitting import fit
from biotorch.training.loop import Trainer
from biotorch.training.losses import LossConfig, training_loss
from biotorch.training.optimizers import OptimizerConfig
from biotorch.training.schedules import SchedulerConfig
from biotorch.training.settings import Hyperparameters, MetricsConfig, TrainingConfig
from biotorch.training.state import Observer, Record, Stopped, TrainingState

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
    "TrainingState",
    "evaluate",
    "fit",
    "launch",
    "training_loss",
]
