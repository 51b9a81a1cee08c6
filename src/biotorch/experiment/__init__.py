"""From a configuration file to results on disk."""

from biotorch.experiment.config import Config, ConfigError, read
from biotorch.experiment.results import DamagedResultError, load_results
from biotorch.experiment.run import run, run_point

__all__ = ["Config", "ConfigError", "DamagedResultError", "load_results", "read", "run", "run_point"]
