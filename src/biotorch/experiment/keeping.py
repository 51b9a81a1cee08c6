"""Files that a training writes while it runs: checkpoints, metrics, and logs for TensorBoard and W&B."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Protocol

from biotorch import _files
from biotorch._names import require
from biotorch.experiment import checkpoints
from biotorch.experiment.config import Config
from biotorch.experiment.display import Display
from biotorch.experiment.folder import LOG_SUFFIX, RunFolder
from biotorch.experiment.signals import StopRequest
from biotorch.training import DivergenceError, Observer, Record, TrainingState


class Log(Protocol):
    """Log that receives one record per epoch."""

    def write(self, record: Record) -> None: ...

    def close(self) -> None: ...


def open_logs(config: Config, folder: RunFolder, history: Sequence[Record]) -> list[Log]:
    """Open the logs that a configuration asks for, and write `history` into them.

    Raises:
        MissingPackageError: wandb is configured but not installed; the message says how to install it.
    """
    logs: list[Log] = []
    if config.logging.tensorboard:
        logs.append(TensorBoard(folder, history))
    if config.logging.wandb is not None:
        logs.append(WeightsAndBiases(config.logging.wandb, config, folder, history))
    return logs


def scalars(record: Record) -> Iterator[tuple[str, float]]:
    """Tag and value of every number in a record, with tags such as `error/validation` and `angles/conv1`."""
    for key, value in record.items():
        if key in ("train", "validation"):
            yield from ((f"{name}/{key}", figure) for name, figure in value.items())
        elif isinstance(value, dict):
            yield from ((f"{key}/{layer}", figure) for layer, figure in value.items())
        elif key != "epoch":
            yield f"training/{key}", value


class TensorBoard:
    """TensorBoard log, rewritten from `history` at the start, so that a resumed run has neither gaps nor duplicates."""

    def __init__(self, folder: RunFolder, history: Sequence[Record]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder.remove_logs()
        self.folder = folder.logs
        self.writer: Any = SummaryWriter(str(folder.logs), filename_suffix=LOG_SUFFIX)
        for record in history:
            self.write(record)

    def write(self, record: Record) -> None:
        with _files.naming(self.folder):
            for tag, value in scalars(record):
                self.writer.add_scalar(tag, value, record["epoch"])
            self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """W&B log, one W&B run per folder, resumed by its stored identifier; W&B ignores steps that it already has."""

    def __init__(self, project: str, config: Config, folder: RunFolder, history: Sequence[Record]) -> None:
        wandb = require("wandb", "wandb", "logging.wandb")
        if not folder.wandb.is_file():
            _files.write_text(folder.wandb, uuid.uuid4().hex)
        self.run: Any = wandb.init(
            project=project,
            name=str(folder.path),
            id=folder.wandb.read_text(),
            resume="allow",
            dir=str(folder.path),
            config=config.model_dump(mode="json"),
        )
        for record in history:
            self.write(record)

    def write(self, record: Record) -> None:
        self.run.log(dict(scalars(record)), step=record["epoch"])

    def close(self) -> None:
        self.run.finish()


class Keeper(Observer):
    """Observer that writes metrics, logs and checkpoints of one run; a context manager.

    Only the first process writes, but all processes must agree on when a checkpoint is taken.
    """

    def __init__(
        self,
        trainer: TrainingState,
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
            "num_classes": trainer.data.num_outputs,
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
            self.folder.require_held()
            checkpoints.withdraw(self.folder.latest)  # the last saved state is the diverged one

    @staticmethod
    def _state(trainer: TrainingState) -> tuple[int, int]:
        return trainer.epoch, trainer.step

    @property
    def seconds_in_all(self) -> float:
        """Seconds that the run has taken so far, without interruptions."""
        return time.monotonic() - self.started

    def on_noise(self, done: int, updates: int) -> None:
        self.display.noise(done, updates)

    def on_update(self, trainer: TrainingState) -> None:
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

    def save(self, trainer: TrainingState) -> None:
        state: dict[str, Any] = trainer.state_dict()
        if self.first:
            self.folder.require_held()
            checkpoints.save(
                self.folder.latest, {**self.head, **state, "seconds_in_all": self.seconds_in_all}, keep_previous=True
            )
            best = trainer.best
            if best["epoch"] != self.best_epoch:
                checkpoints.save(self.folder.best, self.head | best)
                self.best_epoch = best["epoch"]
        self.saved_at, self.saved_state = time.monotonic(), self._state(trainer)
