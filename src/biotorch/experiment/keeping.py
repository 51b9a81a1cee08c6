"""What a training leaves on disk while it runs, and what it shows."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from biotorch.experiment import checkpoints
from biotorch.experiment.config import Config
from biotorch.experiment.folder import RunFolder
from biotorch.experiment.logs import Log, open_logs
from biotorch.experiment.results import Result
from biotorch.experiment.signals import StopRequest
from biotorch.training import DivergenceError, Observer, Record, Trainer


class Display:
    """Shows a study; this one shows nothing."""

    def start(self, name: str, config: Config) -> None:
        """The point `name` begins, or continues."""

    def noise(self, done: int, updates: int) -> None:
        """So many of the updates on noise before epoch one are done."""

    def update(self, trainer: Trainer) -> None:
        """The weights were updated once more."""

    def epoch(self, record: Record, name: str | None = None) -> None:
        """An epoch of the point `name` has been measured; None: of the one that began last."""

    def finished(self, name: str, result: Result) -> None:
        """The point `name` is finished, now or in an earlier command."""

    def failed(self, name: str, message: str) -> None:
        """The point `name` broke."""

    def warn(self, message: str) -> None:
        """Another process has warned."""


class Keeper(Observer):
    """Writes metrics, logs and checkpoints of one run; a context manager.

    In the first process alone, though all of them have to agree on when a checkpoint is taken.
    """

    def __init__(
        self,
        trainer: Trainer,
        config: Config,
        folder: RunFolder,
        display: Display,
        request: StopRequest,
        seconds: float,
    ) -> None:
        self.first = trainer.fabric.is_global_zero
        self.folder, self.display, self.request = folder, display, request
        self.interval = config.infrastructure.checkpoint_seconds
        self.head = {
            "format": checkpoints.FORMAT,
            "config": config.model_dump(mode="json"),
            "num_classes": trainer.data.num_classes,
            "input_shape": list(trainer.data.input_shape),
            "data": trainer.data.record,
        }
        self.started, self.saved_at, self.best_epoch = time.monotonic() - seconds, time.monotonic(), None
        self.trainer, self.saved_state = trainer, self._state(trainer)
        self.logs: list[Log] = []
        if self.first:
            folder.write_metrics(trainer.history)
            self.logs = open_logs(config, folder, trainer.history)

    def __enter__(self) -> Keeper:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for log in self.logs:
            log.close()
        if isinstance(value, DivergenceError) and self.first and self.saved_state == self._state(self.trainer):
            checkpoints.withdraw(self.folder.latest)  # what was saved last is what diverged

    @staticmethod
    def _state(trainer: Trainer) -> tuple[int, int]:
        return trainer.epoch, trainer.step

    @property
    def seconds_in_all(self) -> float:
        """What the run has taken so far, interruptions left out."""
        return time.monotonic() - self.started

    def on_noise(self, done: int, updates: int) -> None:
        self.display.noise(done, updates)

    def on_update(self, trainer: Trainer) -> None:
        self.display.update(trainer)

    def on_epoch(self, record: Record) -> None:
        if self.first:
            self.folder.append_metrics(record)
            for log in self.logs:
                log.write(record)
        self.display.epoch(record)

    def save_now(self) -> bool:
        return self.first and time.monotonic() - self.saved_at >= self.interval

    def stop_now(self) -> bool:
        return self.request.number is not None

    def save(self, trainer: Trainer) -> None:
        state: dict[str, Any] = trainer.state_dict()
        if self.first:
            checkpoints.save(
                self.folder.latest, {**self.head, **state, "seconds_in_all": self.seconds_in_all}, keep_previous=True
            )
            best = trainer.best
            if best["epoch"] != self.best_epoch:
                checkpoints.save(self.folder.best, self.head | best)
                self.best_epoch = best["epoch"]
        self.saved_at, self.saved_state = time.monotonic(), self._state(trainer)
