"""Executors, which run the points of a study: in processes of this machine, on Slurm or on Ray."""

from biotorch.experiment.executors.base import Ended, Executor, Task
from biotorch.experiment.executors.local import Local
from biotorch.experiment.executors.ray import Ray
from biotorch.experiment.executors.slurm import Slurm

__all__ = ["Ended", "Executor", "Local", "Ray", "Slurm", "Task"]
