"""Interface of all executors, and the execution of a single point."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from biotorch import _memory
from biotorch.errors import Failure
from biotorch.experiment.config import Config
from biotorch.experiment.display import Display
from biotorch.experiment.point import run_point
from biotorch.experiment.signals import stop_requests


@dataclasses.dataclass(frozen=True)
class Task:
    """Point to run: name, configuration, folder, and the mark of the earlier runs that the command discards, or ""."""

    name: str
    config: Config
    path: Path
    discards: str = ""


@dataclasses.dataclass(frozen=True)
class Ended:
    """Task that has ended; if `failure` is None, its result is on disk."""

    task: Task
    failure: Failure | None


class Executor(ABC):
    """Runs tasks somewhere; a context manager that leaves none of its own processes behind.

    All machines must see the folder of results at the same path, because results are exchanged only through it.
    """

    #: Whether tasks continue when this process ends.
    detached: bool = False
    #: Whether tasks read the data of this machine.
    here: bool = False

    def __init__(self) -> None:
        self._messages: list[str] = []

    @abstractmethod
    def submit(self, tasks: Sequence[Task]) -> None:
        """Accept the tasks; called once."""

    @abstractmethod
    def wait(self, seconds: float) -> list[Ended]:
        """Wait until a task has ended or `seconds` have passed, and return the tasks ended since the last call."""

    @abstractmethod
    def running(self) -> list[Task]:
        """Tasks that are running at this moment."""

    @abstractmethod
    def stop(self) -> None:
        """Ask the tasks to write a checkpoint and to end; a `detached` executor leaves them running."""

    def messages(self) -> list[str]:
        """Warnings of the tasks since the last call."""
        found, self._messages = self._messages, []
        return found

    def __enter__(self) -> Executor:
        return self

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release all resources."""


def execute(task: Task) -> Failure | None:
    """Run a task in this process, and return its failure, or None if its result is on disk.

    Raises:
        Interrupted: SIGINT or SIGTERM has stopped the run; the last checkpoint is on disk.
    """
    _memory.keep_freed()
    with stop_requests() as request:
        try:
            run_point(task.config, task.path, Display(), request, task.discards)
        except Exception as error:  # noqa: BLE001 - the other points go on, and the command reports it at the end
            return Failure.of(error)
    return None
