"""From a configuration file to results on disk."""

from biotorch.experiment.config import Config, ConfigError, read
from biotorch.experiment.results import load_results
from biotorch.experiment.run import run, run_point

__all__ = ["Config", "ConfigError", "load_results", "read", "run", "run_point"]
