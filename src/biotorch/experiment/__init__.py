"""From a configuration file to results on disk."""

from biotorch.experiment.building import load
from biotorch.experiment.checkpoints import CheckpointError
from biotorch.experiment.claiming import OtherRunError
from biotorch.experiment.config import Config
from biotorch.experiment.executors import Failure
from biotorch.experiment.folder import LockedError, RunFolder
from biotorch.experiment.keeping import Display
from biotorch.experiment.reading import ConfigError, Study, read
from biotorch.experiment.results import DamagedResultError, load_results
from biotorch.experiment.run import run_point
from biotorch.experiment.signals import Interrupted
from biotorch.experiment.study import BrokenPointsError, run

__all__ = [
    "BrokenPointsError",
    "CheckpointError",
    "Config",
    "ConfigError",
    "DamagedResultError",
    "Display",
    "Failure",
    "Interrupted",
    "LockedError",
    "OtherRunError",
    "RunFolder",
    "Study",
    "load",
    "load_results",
    "read",
    "run",
    "run_point",
]
