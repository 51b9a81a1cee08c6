"""One command on a study: room for the study on disk, and the discarding of earlier runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from biotorch import _files
from biotorch.errors import LockedError, OtherRunError
from biotorch.experiment.folder import SEARCH, STUDY_MARK, RunFolder, holds_files, is_study
from biotorch.experiment.point import launched, on_first
from biotorch.experiment.reading import Study
from biotorch.training.distributed import one_of_several


@contextlib.contextmanager
def command(study: Study, overwrite: bool) -> Iterator[str]:
    """Context of a command that runs `study`, with all that follows the last point.

    With `overwrite`, earlier runs of the points are marked once, and each is deleted when its successor begins. The
    mark is of this command: a digest of its configuration and a random number. It counts while `.overwrite` in the
    study's folder holds it too. If the command is interrupted or killed, the next one with the same configuration finds
    it there, marks nothing, and so continues. After any other end, runs that have no successor are kept.

    Yields the mark of the runs that this command discards, or "".

    Raises:
        OtherRunError: the study would lie inside a run, or among files that no run has written.
        LockedError: another process overwrites the study, or, with `overwrite`, works on a point; nothing is discarded.
    """
    lock = FileLock(study.folder / ".overwrite.lock")  # of the first process, if torchrun or Slurm has started several
    try:
        mark = _once(study, lambda: _begin(study, overwrite, lock))
        try:
            yield mark
        except KeyboardInterrupt:
            raise
        except BaseException:
            _end(study, mark, lock)
            raise
        _end(study, mark, lock)
    finally:
        lock.release()


def states(study: Study, overwrite: bool) -> dict[str, str]:
    """Action of a command on each point of the study: none if it is "finished"."""
    found, discards = {}, _discards(study)
    for name in study.points:
        folder = RunFolder(study.folder / name, discards)
        finished, begun = folder.results.is_file(), folder.latest.is_file()
        if (finished or begun) and (folder.discarded or (overwrite and not discards)):
            found[name] = f"to run anew, deletes the {'finished' if finished else 'interrupted'} run"
        else:
            found[name] = "finished" if finished else "to continue" if begun else "to run"
    return found


def is_sweep(study: Study) -> bool:
    """Whether the points of the study have folders of their own within its folder."""
    return list(study.points) != [""]


def _once(study: Study, action: Callable[[], str]) -> str:
    """Run `action` in the first of the processes that torchrun or Slurm has started, before the others go on."""
    return on_first(launched(study.config), action) if one_of_several() else action()


def _begin(study: Study, overwrite: bool, lock: FileLock) -> str:
    require_room(study)
    if is_sweep(study):
        study.folder.mkdir(parents=True, exist_ok=True)
        (study.folder / STUDY_MARK).touch()
    interrupted = bool(_discards(study))
    if not overwrite and not interrupted:
        return ""
    mark = f"{_digest(study)} {uuid.uuid4().hex}"
    points = [RunFolder(study.folder / name, mark) for name in study.points]
    earlier = [] if interrupted else [each for each in points if not is_sweep(study) or holds_files(each.path)]
    for folder in earlier:  # nothing is marked unless all can be
        with folder.locked():
            pass
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise LockedError(
            f"another process is working on {study.folder}, and overwrites it; wait for it, or choose another "
            "experiment.name"
        ) from error
    if interrupted:
        return _discards(study)
    for folder in earlier:
        folder.discard()
    _files.write_text(_overwriting(study), mark)
    return mark


def _end(study: Study, mark: str, lock: FileLock) -> None:
    """Make the mark of this command void, and take all marks away: others are older, as the study is locked."""
    if lock.is_locked and mark and _discards(study) == mark:
        _overwriting(study).unlink()
        for path in (study.folder, *filter(Path.is_dir, study.folder.iterdir())):
            RunFolder(path).keep()


def _overwriting(study: Study) -> Path:
    return study.folder / ".overwrite"


def _discards(study: Study) -> str:
    """Mark of the command with this configuration that overwrites the study, now or until it was interrupted, or ""."""
    try:
        mark = _overwriting(study).read_text()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    return mark if mark.startswith(f"{_digest(study)} ") else ""


def _digest(study: Study) -> str:
    tree = {name: config.model_dump(mode="json") for name, config in study.points.items()}
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def require_room(study: Study) -> None:
    """Check where the study lies; the folder of a single run and those of points are judged when they are locked.

    Raises:
        OtherRunError: the study would lie inside a run, a single run in the folder of a sweep, or a sweep among files
            of which none is a run's.
    """
    folder, output = study.folder, study.config.experiment.output_dir
    if is_sweep(study) and holds_files(folder) and not is_study(folder):
        raise OtherRunError(
            f"{folder} is not empty and holds no run; choose another experiment.name, or move what it holds"
        )
    if not is_sweep(study) and (folder / STUDY_MARK).is_file():
        raise OtherRunError(f"{folder} is the folder of a sweep; choose another experiment.name")
    path = folder / next(iter(study.points))
    while path.parent != output and output in path.parents:
        path, below = path.parent, path.name
        if below != SEARCH and RunFolder(path).is_own and holds_files(path):
            raise OtherRunError(f"{folder} would lie in the folder of the run {path}; choose another experiment.name")
