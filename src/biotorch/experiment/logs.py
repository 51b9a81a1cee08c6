"""Copies of the metrics for tools that show them: TensorBoard, Weights & Biases. metrics.jsonl is the truth."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from biotorch import writing
from biotorch.experiment.config import Config
from biotorch.experiment.folder import RunFolder
from biotorch.extras import require
from biotorch.training import Record


class Log(Protocol):
    """Something that takes one record per epoch."""

    def write(self, record: Record) -> None: ...

    def close(self) -> None: ...


def open_logs(config: Config, folder: RunFolder, history: Sequence[Record]) -> list[Log]:
    """The logs that a configuration asks for, brought to the state of `history`.

    Raises:
        MissingPackageError: wandb is asked for and not installed; the message says how to.
    """
    logs: list[Log] = []
    if config.logging.tensorboard:
        logs.append(TensorBoard(folder.logs, history))
    if config.logging.wandb is not None:
        logs.append(WeightsAndBiases(config.logging.wandb, config, folder, history))
    return logs


def scalars(record: Record) -> Iterator[tuple[str, float]]:
    """Tag and value of every figure of a record, grouped as `error/validation`, `angles/conv1`."""
    for key, value in record.items():
        if key in ("train", "validation"):
            yield from ((f"{name}/{key}", figure) for name, figure in value.items())
        elif isinstance(value, dict):
            yield from ((f"{key}/{layer}", figure) for layer, figure in value.items())
        elif key != "epoch":
            yield f"training/{key}", value


class TensorBoard:
    """One run with grouped tags, written anew from `history`: neither gaps nor doubles after a resume."""

    def __init__(self, folder: Path, history: Sequence[Record]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - slow to import, and not always wanted

        shutil.rmtree(folder, ignore_errors=True)
        self.folder = folder
        self.writer: Any = SummaryWriter(str(folder))
        for record in history:
            self.write(record)

    def write(self, record: Record) -> None:
        with writing.naming(self.folder):
            for tag, value in scalars(record):
                self.writer.add_scalar(tag, value, record["epoch"])
            self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run per folder, continued under its own identifier; W&B ignores steps that it already has."""

    def __init__(self, project: str, config: Config, folder: RunFolder, history: Sequence[Record]) -> None:
        wandb = require("wandb", "wandb", "logging.wandb")
        if not folder.wandb.is_file():
            writing.write_text(folder.wandb, uuid.uuid4().hex)
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
