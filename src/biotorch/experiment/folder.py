"""The folder of one run: who may write it, and what stands where."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

import biotorch
from biotorch import _files
from biotorch.errors import LockedError
from biotorch.experiment import checkpoints, documents
from biotorch.experiment.results import plain
from biotorch.training import Record


class RunFolder:
    """Paths and files of one run.

    `config.yaml` is the resolved configuration, `metrics.jsonl` one record per epoch, `latest_model.pth`
    the checkpoint, `model_best_acc.pth` the best model, `best_acc.txt` its accuracy (%), and
    `results.json` and `results.csv`, written last, make it a finished run. `error.txt` says what broke it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.results, self.table = path / "config.yaml", path / "results.json", path / "results.csv"
        self.metrics, self.latest = path / "metrics.jsonl", path / "latest_model.pth"
        self.best, self.best_accuracy = path / "model_best_acc.pth", path / "best_acc.txt"
        self.logs, self.wandb = path / "logs", path / ".wandb"
        self.error = path / "error.txt"
        self._lock = FileLock(path / ".lock")

    def lock(self) -> None:
        """Take the folder for this process; the system frees it however the process ends.

        Raises:
            LockedError: another process has it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise LockedError(
                f"another process is working on {self.path}: wait for it, or choose another experiment.name"
            ) from error
        _files.remove_unfinished(self.path)

    def release(self) -> None:
        """Give the folder back."""
        self._lock.release()

    def begin(self, config: dict[str, Any], overwrite: bool) -> None:
        """Make the folder that of a run of `config`; with `overwrite` forget what an earlier one has written."""
        if overwrite:
            self.clear()
        self.error.unlink(missing_ok=True)
        self.write_config(config)

    def clear(self) -> None:
        """Forget a run: remove what an earlier one has written, its results first."""
        mine = (self.results, self.table, self.latest, _files.previous(self.latest), self.best)
        for path in (*mine, self.best_accuracy, self.metrics, self.wandb, self.config):
            path.unlink(missing_ok=True)
        for folder in (self.logs, self.path / "wandb"):
            shutil.rmtree(folder, ignore_errors=True)

    # Configuration ---------------------------------------------------------------------------------

    def write_config(self, config: dict[str, Any]) -> None:
        """The resolved configuration; run again, it gives the same run."""
        head = f"# Resolved by biotorch {biotorch.__version__}; `biotorch run` on this file repeats the run.\n"
        _files.write_text(self.config, head + documents.dump(config))

    def read_config(self) -> dict[str, Any] | None:
        """The resolved configuration of an earlier start, or None.

        Where the file is missing or damaged, the checkpoint knows it too.
        """
        try:
            tree = yaml.load(self.config.read_text(), documents.Loader) if self.config.is_file() else None
        except (yaml.YAMLError, UnicodeDecodeError):
            tree = None
        if isinstance(tree, dict):
            return tree
        newest = checkpoints.newest(self.latest)
        return None if newest is None else checkpoints.load(newest).get("config")

    # Metrics ---------------------------------------------------------------------------------------

    def write_metrics(self, history: Sequence[Record]) -> None:
        """Make metrics.jsonl hold exactly these records."""
        _files.write_text(self.metrics, "".join(map(_line, history)))

    def append_metrics(self, record: Record) -> None:
        """One more record."""
        with _files.naming(self.metrics), self.metrics.open("a") as file:
            file.write(_line(record))


def _line(record: Record) -> str:
    return json.dumps(plain(record), allow_nan=False) + "\n"
