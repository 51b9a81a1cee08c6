"""Folder of one run: its lock, its paths and its files."""

from __future__ import annotations

import contextlib
import json
import re
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
from biotorch.experiment.results import STUDY, Result, load_results, plain
from biotorch.training import Record

#: Names of the files in `attacks` that hold one measurement each.
_MEASUREMENT = re.compile(r".*epsilon=.*-[0-9a-f]{8}\.json")


class RunFolder:
    """Paths and files of one run.

    `config.yaml` is the resolved configuration, `metrics.jsonl` has one record per epoch, `latest_model.pth` is the
    checkpoint, `model_best_acc.pth` the best model, and `best_acc.txt` its accuracy (%), if it is a classification.
    `results.csv` and `results.json` are written last; a folder that has the latter is a finished run. `error.txt` holds
    the error of a run that broke.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.results, self.table = path / "config.yaml", path / "results.json", path / "results.csv"
        self.metrics, self.latest = path / "metrics.jsonl", path / "latest_model.pth"
        self.best, self.best_accuracy = path / "model_best_acc.pth", path / "best_acc.txt"
        self.logs, self.wandb = path / "logs", path / ".wandb"
        self.error = path / "error.txt"
        self.study, self.study_text = path / STUDY, (path / STUDY).with_suffix(".md")
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
        self.clear_robustness()  # of the network that was there before
        self.error.unlink(missing_ok=True)
        self.write_config(config)

    def clear(self) -> None:
        """Delete the files of a run, its results first."""
        mine = (self.results, self.table, self.latest, _files.previous(self.latest), self.best)
        for path in (*mine, self.best_accuracy, self.metrics, self.wandb, self.config):
            path.unlink(missing_ok=True)
        for folder in (self.logs, self.path / "wandb"):
            shutil.rmtree(folder, ignore_errors=True)
        self.clear_attacks()

    def clear_attacks(self) -> None:
        """Delete the study of the robustness of a network that is no longer there, and no file of another origin."""
        attacks = self.study.parent
        measured = [path for path in attacks.glob("*.json") if _MEASUREMENT.fullmatch(path.name)]
        for path in (self.study, self.study_text, attacks / "examples.png", *measured, attacks / ".lock"):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it is not empty, or does not exist
            attacks.rmdir()

    def clear_robustness(self) -> None:
        """Delete the table and the figures that `biotorch attack` writes into the folder of a run or a sweep."""
        for name in ("robustness.md", "white_box.png", "black_box.png"):
            (self.path / name).unlink(missing_ok=True)

    # Configuration ---------------------------------------------------------------------------------

    def write_config(self, config: dict[str, Any]) -> None:
        """Write the resolved configuration; `biotorch run` on this file repeats the run."""
        head = f"# Resolved by biotorch {biotorch.__version__}; `biotorch run` on this file repeats the run.\n"
        _files.write_text(self.config, head + documents.dump(config))

    def read_config(self) -> dict[str, Any] | None:
        """Read the resolved configuration of an earlier start, or None.

        If the file is missing or damaged, the configuration in the checkpoint is returned.
        """
        tree = self._written_config()
        if tree is not None:
            return tree
        newest = checkpoints.newest(self.latest)
        return None if newest is None else checkpoints.load(newest).get("config")

    def owner(self) -> tuple[Result | None, dict[str, Any]] | None:
        """Result and configuration of the run that the folder belongs to, or None if no file tells.

        Raises:
            DamagedResultError: the result cannot be read.
        """
        result = load_results(self.path)
        if result is not None:
            return result, result["config"]
        tree = self._written_config()
        return None if tree is None else (None, tree)

    def _written_config(self) -> dict[str, Any] | None:
        try:
            tree = yaml.load(self.config.read_text(), documents.Loader) if self.config.is_file() else None
        except (yaml.YAMLError, UnicodeDecodeError):
            return None
        return tree if isinstance(tree, dict) else None

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
