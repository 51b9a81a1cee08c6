"""Folder of one run: which folders are a run's, its lock, its paths and its files."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

import biotorch
from biotorch import _files
from biotorch.errors import LockedError, LostFolderError, OtherRunError
from biotorch.experiment import checkpoints, documents
from biotorch.experiment.results import STUDY, Result, load_results, plain
from biotorch.training import Record

#: Names of the folder of a search, of the file that locks a folder, and of the mark of a study of several points.
SEARCH, _LOCK, STUDY_MARK = "search", ".lock", ".study"
#: Names of the files in `attacks` that hold one measurement, or adversarial examples.
_MEASUREMENT = re.compile(r"(.*epsilon=.*|corruption_\w+)-[0-9a-f]{8}\.json|adversarial-epsilon=.*\.(npz|png)")

#: First words of every config.yaml that a run writes.
_HEAD = "# Resolved by biotorch"

#: Tables, figures and pages that commands write into the folder of a run or a sweep: of its attacks, of its runs.
_FIGURES = ("white_box", "black_box", "smallest", "corruption", "calibration")
_OF_ATTACKS = ("robustness.md", "smallest.md", *(f"{name}.png" for name in _FIGURES))
_OF_RUNS = ("table.md", "angles.png", "page.html")


class LockedFolder:
    """Folder in which one process at a time writes, and in which nobody else's files are touched.

    A folder is ours if it has the lock's file, or if its `proof` begins with or contains certain words, because copies
    and published runs may lack the lock. Any other folder that holds files is refused.

    Args:
        path: the folder.
        proofs: files that show that the folder is ours, by name, with words that they contain.
    """

    def __init__(self, path: Path, proofs: dict[str, bytes]) -> None:
        self.path, self._proofs = path, proofs
        self._lock_file = path / _LOCK
        self._lock = FileLock(self._lock_file)
        self._anchor: _files.Anchor | None = None

    @property
    def is_own(self) -> bool:
        """Whether this package has written the folder."""
        if self._lock_file.exists():
            return True
        found = {self.path / name: words for name, words in self._proofs.items() if (self.path / name).is_file()}
        return any(words in path.read_bytes() for path, words in found.items())

    def lock(self) -> None:
        """Lock the folder for this process; the system unlocks it however the process ends.

        Raises:
            OtherRunError: the folder holds files, none of which shows that it is ours.
            LockedError: another process holds the lock.
        """
        if not self.is_own and holds_files(self.path):
            raise OtherRunError(
                f"{self.path} is not empty and is no folder of a run; choose another experiment.name, or move what it "
                "holds"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise LockedError(
                f"another process is working on {self.path}; wait for it, or choose another experiment.name"
            ) from error
        self._anchor = _files.Anchor(self._lock_file)
        _files.remove_unfinished(self.path)

    def release(self) -> None:
        """Unlock the folder."""
        if self._anchor is not None:
            self._anchor.release()
            self._anchor = None
        self._lock.release()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Context in which the folder is locked.

        Raises:
            OtherRunError, LockedError: as in `lock`.
            LostFolderError: something inside the context missed a file because the folder was deleted.
        """
        self.lock()
        try:
            with self.noticing():
                yield
        finally:
            self.release()

    @contextlib.contextmanager
    def noticing(self) -> Iterator[None]:
        """Context in which a file that is missing in the locked folder shows that somebody deletes the folder.

        The file of the lock may be the last one to go. Raises LostFolderError.
        """
        try:
            yield
        except FileNotFoundError as error:
            if error.filename is not None and self.path in Path(os.fsdecode(error.filename)).parents:
                raise self._lost() from error
            self.require_held()
            raise

    def require_held(self) -> None:
        """Raise LostFolderError if the folder was deleted or replaced since it was locked."""
        if self._anchor is not None and not self._anchor.holds():
            raise self._lost()

    def _lost(self) -> LostFolderError:
        return LostFolderError(
            f"{self.path} was deleted or replaced while this process worked in it, so nothing more is written; leave "
            "the folder where it is while it is in use"
        )


def holds_files(folder: Path) -> bool:
    """Whether there is any file in or below a folder, not counting locks and a search for learning rates."""
    for place, folders, files in os.walk(folder):
        if set(files) - {_LOCK}:
            return True
        if Path(place) == folder and SEARCH in folders and is_study(folder / SEARCH):
            folders.remove(SEARCH)
    return False


def is_study(folder: Path) -> bool:
    """Whether a folder is that of a study with several points: by its own mark, or because it holds a run's folder."""
    if (folder / STUDY_MARK).is_file():
        return True
    return folder.is_dir() and any(RunFolder(path).is_own for path in folder.iterdir() if path.is_dir())


class RunFolder(LockedFolder):
    """Paths and files of one run.

    `config.yaml` is the resolved configuration, `metrics.jsonl` has one record per epoch, `latest_model.pth` is the
    checkpoint, `model_best_acc.pth` the best model, and `best_acc.txt` its accuracy (%), if it is a classification.
    `results.csv` and `results.json` are written last; a folder that has the latter is a finished run. `error.txt` holds
    the error of a run that broke, and `.discard` the mark of a command that deletes the run when the next one begins.

    Args:
        path: the folder.
        discards: mark of the command that works on the folder, if it discards earlier runs; other marks do not count.

    Examples:
        >>> results = biotorch.experiment.run(biotorch.experiment.read("study.yaml"))
        >>> biotorch.experiment.RunFolder(Path("runs/example/rule=fa,seed=0")).best.is_file()
        True
    """

    def __init__(self, path: Path, discards: str = "") -> None:
        self._discards = discards
        super().__init__(path, {"config.yaml": _HEAD.encode(), "results.json": b'"state_hash"'})
        self.config, self.results, self.table = path / "config.yaml", path / "results.json", path / "results.csv"
        self.metrics, self.latest = path / "metrics.jsonl", path / "latest_model.pth"
        self.best, self.best_accuracy = path / "model_best_acc.pth", path / "best_acc.txt"
        self.logs, self.wandb = path / "logs", path / ".wandb-run"  # not .wandb, which W&B would take for its folder
        self.error, self._discard = path / "error.txt", path / ".discard"
        self.study, self.study_text = path / STUDY, (path / STUDY).with_suffix(".md")

    # Discarding ------------------------------------------------------------------------------------

    @property
    def discarded(self) -> str:
        """Mark of this command if it wants the run in the folder discarded, or ""."""
        marked = bool(self._discards) and self._discard.is_file() and self._discard.read_text() == self._discards
        return self._discards if marked else ""

    def discard(self) -> None:
        """Mark the run in the folder as this command's; its files stay until the next run is known to fit and begins.

        Raises OtherRunError and LockedError as `lock` does.
        """
        with self.locked():
            _files.write_text(self._discard, self._discards)

    def keep(self) -> None:
        """Take the mark of any command away."""
        self._discard.unlink(missing_ok=True)

    def begin(self, config: dict[str, Any]) -> None:
        """Start or continue a run of `config` in the folder, after deleting the files of a discarded one."""
        discarded = bool(self.discarded)
        if discarded:
            self._clear()
        self.clear_report(whole=discarded)  # of the network that was there before
        self.error.unlink(missing_ok=True)
        self.write_config(config)
        if discarded:  # as the last, so that a process that is killed here begins again
            self.keep()

    def _clear(self) -> None:
        """Delete the files of a run, its results first; config.yaml stays until it is replaced."""
        checkpoints_ = [self.latest, _files.previous(self.latest)]
        damaged = [checkpoints.damaged(path) for path in checkpoints_]
        for path in (self.results, self.table, *checkpoints_, *damaged, self.best, self.best_accuracy, self.metrics):
            path.unlink(missing_ok=True)
        self.remove_logs()
        if self.wandb.is_file():
            _remove_wandb(self.path / "wandb", self.wandb.read_text())
            self.wandb.unlink()
        self.clear_attacks()

    def remove_logs(self) -> None:
        """Delete this run's logs for TensorBoard, and their folder if nothing else is in it."""
        for path in self.logs.glob(f"events.out.tfevents.*{LOG_SUFFIX}"):
            path.unlink()
        with contextlib.suppress(OSError):  # it is missing, or holds files of others
            self.logs.rmdir()

    def clear_attacks(self) -> None:
        """Delete the study of the robustness of a network that is no longer there, and no file of another origin."""
        attacks = self.study.parent
        measured = [path for path in attacks.glob("*") if _MEASUREMENT.fullmatch(path.name)]
        for path in (self.study, self.study_text, attacks / "examples.png", *measured, attacks / _LOCK):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it is not empty, or does not exist
            attacks.rmdir()

    def clear_report(self, whole: bool) -> None:
        """Delete tables and figures of attacks in the folder of a run or a sweep, or, as a `whole`, of its runs too."""
        for name in (*_OF_ATTACKS, *(_OF_RUNS if whole else ())):
            (self.path / name).unlink(missing_ok=True)

    # Configuration ---------------------------------------------------------------------------------

    def write_config(self, config: dict[str, Any]) -> None:
        """Write the resolved configuration; `biotorch run` on this file repeats the run."""
        self.require_held()
        head = f"{_HEAD} {biotorch.__version__}; `biotorch run` on this file repeats the run.\n"
        _files.write_text(self.config, head + documents.dump(config))

    def read_config(self) -> dict[str, Any] | None:
        """Configuration of an earlier start, from the checkpoint if the file is missing or damaged; else None."""
        stored = documents.stored(self.config)
        if stored is not None:
            return stored
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
        stored = documents.stored(self.config)
        return None if stored is None else (None, stored)

    # Metrics ---------------------------------------------------------------------------------------

    def write_metrics(self, history: Sequence[Record]) -> None:
        """Replace the content of metrics.jsonl by these records."""
        self.require_held()
        _files.write_text(self.metrics, "".join(map(_line, history)))

    def append_metrics(self, record: Record) -> None:
        """Append a record to metrics.jsonl."""
        self.require_held()
        with _files.naming(self.metrics), self.metrics.open("a") as file:
            file.write(_line(record))


#: End of the names of TensorBoard's files that a run writes, which tells them from others in the same folder.
LOG_SUFFIX = ".biotorch"


def _remove_wandb(folder: Path, identifier: str) -> None:
    """Delete what W&B keeps of one of its runs, and its folder and links if nothing else is in it."""
    for path in folder.glob(f"*run-*-{identifier}"):
        shutil.rmtree(path)
    for path in folder.glob("*"):
        if path.is_symlink() and not path.exists():  # W&B's links to its latest run
            path.unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()


def _line(record: Record) -> str:
    return json.dumps(plain(record), allow_nan=False) + "\n"
