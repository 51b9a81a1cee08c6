"""Executor on a Ray cluster, which may be started on this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import sys
import warnings
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from biotorch._names import require
from biotorch.errors import ConfigError, Failure, Interrupted
from biotorch.experiment.cluster import ClusterConfig
from biotorch.experiment.executors.base import Ended, Executor, Task, execute
from biotorch.experiment.executors.local import cores

#: Seconds that tasks may take to save and end.
_PATIENCE = 60.0

#: Environment variables that Ray reads on import. They turn off its usage reports, and its log lines about dead
#: workers, because the failure of the task reports the same.
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS_SKIP_REGEX": "A worker died or was killed"}


class Ray(Executor):
    """Executor with one Ray task per point, at most `jobs` at once, each in one process and without retries.

    Args:
        jobs: largest number of tasks at once; without `cluster.ray.address` also the workers of the new cluster.
        threads: threads of each task. Default: the cores of this machine divided by `jobs`.
        cluster: address of the Ray cluster, and the environment of its workers.

    Raises:
        MissingPackageError: Ray is not installed.
    """

    def __init__(self, jobs: int, threads: int | None = None, cluster: ClusterConfig | None = None) -> None:
        super().__init__()
        self.jobs, self.threads, self.cluster = jobs, threads or max(1, cores() // jobs), cluster or ClusterConfig()
        os.environ.update({name: os.environ.get(name, value) for name, value in _QUIET.items()})
        self._ray: Any = require("ray", "ray", "--executor ray")
        self._left: deque[Task] = deque()
        self._tasks: dict[Any, Task] = {}
        self._started = self._stopping = False

    def submit(self, tasks: Sequence[Task]) -> None:
        """Connect to the cluster or start one, and submit the first tasks.

        Raises:
            ConfigError: a point needs several processes, or no cluster answers at the address.
        """
        for task in tasks:
            _require_one_process(task)
        if not self._ray.is_initialized():
            self._start()
        self._left.extend(tasks)
        self._feed()

    def _start(self) -> None:
        ray = self.cluster.ray
        here: dict[str, Any] = {}
        if ray.address is None:
            here = {"num_cpus": self.jobs * self.threads, "include_dashboard": False}
        try:
            self._ray.init(
                address=ray.address or "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env=ray.runtime_env or None,
                **here,
            )
        except (OSError, RuntimeError, ValueError) as error:  # OSError: no cluster answers
            raise ConfigError(f"cluster.ray: {error}") from error
        self._started = True

    def _feed(self) -> None:
        """Submit tasks until `jobs` of them are at work."""
        while self._left and len(self._tasks) < self.jobs and not self._stopping:
            task = self._left.popleft()
            gpus = 0 if task.config.infrastructure.gpus == -1 else 1
            work = self._ray.remote(num_cpus=self.threads, num_gpus=gpus, max_retries=0)(_work)
            absolute = dataclasses.replace(task, path=task.path.resolve())
            home = _Home(tuple(sys.path), Path.cwd())
            self._tasks[work.remote(absolute, self.threads, home)] = task

    def running(self) -> list[Task]:
        return list(self._tasks.values())

    def wait(self, seconds: float) -> list[Ended]:
        if not self._tasks:
            return []
        ready, _ = self._ray.wait(list(self._tasks), timeout=seconds)
        ended = []
        for reference in ready:
            task = self._tasks.pop(reference)
            try:
                failure, messages = self._ray.get(reference)
            except self._ray.exceptions.TaskCancelledError:
                continue  # stopped on request; its checkpoint is on disk
            except self._ray.exceptions.RayError as error:
                failure, messages = _death(error), []
            self._messages += messages
            ended.append(Ended(task, failure))
        self._feed()
        return ended

    def stop(self) -> None:
        self._stopping = True
        for reference in self._tasks:
            self._ray.cancel(reference, force=False)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._tasks and not self._stopping:
            self.stop()
        if self._tasks:
            self._ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=_PATIENCE)
        if self._started:
            self._ray.shutdown()


def _require_one_process(task: Task) -> None:
    """Raise ConfigError if a point needs several processes, or a device other than 0."""
    infrastructure = task.config.infrastructure
    if infrastructure.num_nodes > 1 or (isinstance(infrastructure.gpus, list) and len(infrastructure.gpus) > 1):
        raise ConfigError(
            "--executor ray runs each point in one process; give each point one device and one machine, or start the "
            "processes of a run with --executor slurm or torchrun"
        )
    if infrastructure.gpus not in (-1, 0, [0]):
        raise ConfigError(
            f"infrastructure.gpus: {infrastructure.gpus}: Ray chooses the device of a task, which sees it as 0; write 0"
        )


def _death(error: Exception) -> Failure:
    """Failure of a task whose worker died without a result."""
    return Failure("died", f"its worker died ({type(error).__name__}): {str(error).strip().splitlines()[0]}")


# In the worker ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Home:
    """Module path and working folder of the submitting process, which a worker takes over."""

    modules: tuple[str, ...]
    folder: Path

    def enter(self) -> None:
        with contextlib.suppress(FileNotFoundError):  # a relative path that is missing then raises its own error
            os.chdir(self.folder)
        sys.path += [path for path in self.modules if path not in sys.path]


def _work(task: Task, threads: int, home: _Home) -> tuple[Failure | None, list[str]]:
    """Run a task in the worker, and return its failure (or None) and its warnings."""
    torch.set_num_threads(threads)
    told: list[str] = []
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *where, **kwargs: told.append(str(message))
        try:
            home.enter()
            failure = execute(task)
        except Interrupted:  # the checkpoint is written, but this command has not asked to stop
            failure = Failure("defect", "it was stopped by a signal that this command did not send")
    return failure, list(dict.fromkeys(told))
