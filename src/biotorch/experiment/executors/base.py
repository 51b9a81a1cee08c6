"""What every way of running the points of a study has in common."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from biotorch.errors import Failure
from biotorch.experiment.config import Config
from biotorch.experiment.display import Display
from biotorch.experiment.point import run_point
from biotorch.experiment.signals import stop_requests


@dataclasses.dataclass(frozen=True)
class Task:
    """A point that is to be run: its name, its configuration, its folder, and whether to forget what is there."""

    name: str
    config: Config
    path: Path
    overwrite: bool = False


@dataclasses.dataclass(frozen=True)
class Ended:
    """A task has ended; without a failure its result is on disk."""

    task: Task
    failure: Failure | None


class Executor(ABC):
    """Runs tasks somewhere; a context manager, which leaves no process of its own behind.

    Every way of running needs one folder of results that all machines see: figures travel by it alone.
    """

    #: Whether tasks go on when this process ends.
    detached: bool = False

    @abstractmethod
    def submit(self, tasks: Sequence[Task]) -> None:
        """Take these tasks; called once."""

    @abstractmethod
    def wait(self, seconds: float) -> list[Ended]:
        """The tasks that have ended since the last call, as soon as there is one or `seconds` have passed."""

    @abstractmethod
    def running(self) -> list[Task]:
        """Those at work at this moment."""

    @abstractmethod
    def stop(self) -> None:
        """Ask the tasks to write a checkpoint and to end; where they are `detached`, leave them alone."""

    def messages(self) -> list[str]:
        """What the tasks warned of since the last call."""
        return []

    def __enter__(self) -> Executor:
        return self

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give back what was taken."""


def execute(task: Task) -> Failure | None:
    """Run a task in this process; None if its result is on disk afterwards.

    Raises:
        Interrupted: by SIGINT or SIGTERM; the last checkpoint is on disk.
    """
    with stop_requests() as request:
        try:
            run_point(task.config, task.path, task.overwrite, Display(), request)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other points go on, and it is told at the end
            return Failure.of(error)
    return None
