"""Where the points of a study run: processes of this machine, Slurm, Ray."""

from biotorch.experiment.executors.base import Ended, Executor, Failure, Task
from biotorch.experiment.executors.local import Local
from biotorch.experiment.executors.ray_cluster import Ray
from biotorch.experiment.executors.slurm import Slurm

__all__ = ["Ended", "Executor", "Failure", "Local", "Ray", "Slurm", "Task"]
