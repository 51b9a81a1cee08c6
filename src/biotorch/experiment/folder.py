"""Folder of one run: its lock, its paths and its files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

import biotorch
from biotorch import _files
from biotorch.errors import LockedError
from biotorch.experiment import checkpoints, documents
from biotorch.experiment.results import plain
from biotorch.training import Record


class RunFolder:
    """Paths and files of one run.

    `config.yaml` is the resolved configuration, `metrics.jsonl` has one record per epoch, `latest_model.pth` is the
    checkpoint, `model_best_acc.pth` the best model, and `best_acc.txt` its accuracy (%). `results.csv` and
    `results.json` are written last; a folder that has the latter is a finished run. `error.txt` holds the error of a
    run that broke.
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
        """Lock the folder for this process; the system unlocks it however the process ends.

        Raises:
            LockedError: another process holds the lock.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise LockedError(
                f"another process is working on {self.path}; wait for it, or choose another experiment.name"
            ) from error
        _files.remove_unfinished(self.path)

    def release(self) -> None:
        """Unlock the folder."""
        self._lock.release()

    def begin(self, config: dict[str, Any], overwrite: bool) -> None:
        """Start or continue a run of `config` in the folder; with `overwrite`, first delete an earlier run's files."""
        if overwrite:
            self.clear()
        self.error.unlink(missing_ok=True)
        self.write_config(config)

    def clear(self) -> None:
        """Delete the files of a run, its results first."""
        mine = (self.results, self.table, self.latest, _files.previous(self.latest), self.best)
        for path in (*mine, self.best_accuracy, self.metrics, self.wandb, self.config):
            path.unlink(missing_ok=True)
        for folder in (self.logs, self.path / "wandb"):
            shutil.rmtree(folder, ignore_errors=True)

    # Configuration ---------------------------------------------------------------------------------

    def write_config(self, config: dict[str, Any]) -> None:
        """Write the resolved configuration; `biotorch run` on this file repeats the run."""
        head = f"# Resolved by biotorch {biotorch.__version__}; `biotorch run` on this file repeats the run.\n"
        _files.write_text(self.config, head + documents.dump(config))

    def read_config(self) -> dict[str, Any] | None:
        """Read the resolved configuration of an earlier start, or None.

        If the file is missing or damaged, the configuration in the checkpoint is returned.
        """
        stored = documents.stored(self.config)
        if stored is not None:
            return stored
        newest = checkpoints.newest(self.latest)
        return None if newest is None else checkpoints.load(newest).get("config")

    # Metrics ---------------------------------------------------------------------------------------

    def write_metrics(self, history: Sequence[Record]) -> None:
        """Replace the content of metrics.jsonl by these records."""
        _files.write_text(self.metrics, "".join(map(_line, history)))

    def append_metrics(self, record: Record) -> None:
        """Append a record to metrics.jsonl."""
        with _files.naming(self.metrics), self.metrics.open("a") as file:
            file.write(_line(record))


def _line(record: Record) -> str:
    return json.dumps(plain(record), allow_nan=False) + "\n"
