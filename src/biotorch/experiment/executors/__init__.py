"""Where the points of a study run: processes of this machine, Slurm, Ray."""

from biotorch.experiment.executors.base import Ended, Executor, Failure, Task
from biotorch.experiment.executors.local import Local

__all__ = ["Ended", "Executor", "Failure", "Local", "Task"]
