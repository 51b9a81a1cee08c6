"""From a configuration file to results on disk."""

from biotorch.errors import (
    BrokenPointsError,
    CheckpointError,
    ConfigError,
    DamagedResultError,
    Failure,
    Interrupted,
    LockedError,
    OtherRunError,
)
from biotorch.experiment.config import Config
from biotorch.experiment.display import Display
from biotorch.experiment.folder import RunFolder
from biotorch.experiment.network import load
from biotorch.experiment.reading import Study, read
from biotorch.experiment.results import load_results
from biotorch.experiment.run import run_point
from biotorch.experiment.study import run

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
