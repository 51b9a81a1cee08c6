"""Training: one loop; devices, optimizers, schedulers and losses by name."""

from biotorch.errors import DivergenceError as DivergenceError
from biotorch.errors import ResumeError as ResumeError
from biotorch.errors import Stopped as Stopped
from biotorch.training.adversarial import AdversarialConfig as AdversarialConfig
from biotorch.training.distributed import launch as launch
from biotorch.training.evaluation import evaluate as evaluate
from biotorch.training.loop import Trainer as Trainer
from biotorch.training.loop import fit as fit
from biotorch.training.losses import LossConfig as LossConfig
from biotorch.training.losses import training_loss as training_loss
from biotorch.training.optimizers import OptimizerConfig as OptimizerConfig
from biotorch.training.schedules import SchedulerConfig as SchedulerConfig
from biotorch.training.settings import Hyperparameters as Hyperparameters
from biotorch.training.settings import InfrastructureConfig as InfrastructureConfig
from biotorch.training.settings import MetricsConfig as MetricsConfig
from biotorch.training.settings import TrainingConfig as TrainingConfig
from biotorch.training.state import Observer as Observer
from biotorch.training.state import Record as Record
from biotorch.training.state import TrainingState as TrainingState
