"""One command on a study: room for the study on disk, and the discarding of earlier runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from biotorch import _files
from biotorch.errors import OtherRunError
from biotorch.experiment.folder import SEARCH, RunFolder, holds_files, holds_runs
from biotorch.experiment.point import launched, on_first
from biotorch.experiment.reading import Study
from biotorch.training.distributed import one_of_several


@contextlib.contextmanager
def command(study: Study, overwrite: bool) -> Iterator[None]:
    """Context of a command that runs `study`, with all that follows the last point.

    With `overwrite`, earlier runs of the points are marked once, and each is deleted when its successor begins. If the
    command is interrupted or killed, the next one with the same configuration finds `.overwrite` in the study's folder,
    marks nothing, and so continues. After any other end, runs that have no successor are kept.

    Raises:
        OtherRunError: the study would lie inside a run, or among files that no run has written.
        LockedError: with `overwrite`, another process works on a point; nothing is discarded.
    """
    _once(study, lambda: _begin(study, overwrite))
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException:
        _end(study)
        raise
    _end(study)


def overwrites_anew(study: Study) -> bool:
    """Whether `--overwrite` begins all points of the study again, because no such command has been interrupted."""
    path = _mark(study)
    return not path.is_file() or path.read_text() != _digest(study)


def is_sweep(study: Study) -> bool:
    """Whether the points of the study have folders of their own within its folder."""
    return list(study.points) != [""]


def _once(study: Study, action: Callable[[], None]) -> None:
    """Run `action` in the first of the processes that torchrun or Slurm has started, before the others go on."""
    if one_of_several():
        on_first(launched(study.config), action)
    else:
        action()


def _begin(study: Study, overwrite: bool) -> None:
    require_room(study)
    if not overwrite or not overwrites_anew(study):
        return
    try:
        for name in study.points:
            folder = RunFolder(study.folder / name)
            if not is_sweep(study) or holds_files(folder.path):
                folder.discard()
        study.folder.mkdir(parents=True, exist_ok=True)
        _files.write_text(_mark(study), _digest(study))
    except Exception:
        _end(study)
        raise


def _end(study: Study) -> None:
    if _mark(study).is_file():
        _mark(study).unlink()
    for name in study.points:
        RunFolder(study.folder / name).keep()


def _mark(study: Study) -> Path:
    return study.folder / ".overwrite"


def _digest(study: Study) -> str:
    tree = {name: config.model_dump(mode="json") for name, config in study.points.items()}
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def require_room(study: Study) -> None:
    """Check where the study lies; the folder of a single run and those of points are judged when they are locked.

    Raises:
        OtherRunError: the study would lie inside a run, or a sweep among files of which none is a run's.
    """
    folder, output = study.folder, study.config.experiment.output_dir
    if is_sweep(study) and not _mark(study).is_file() and holds_files(folder) and not holds_runs(folder):
        raise OtherRunError(
            f"{folder} is not empty and holds no run; choose another experiment.name, or move what it holds"
        )
    path = folder / next(iter(study.points))
    while path.parent != output and output in path.parents:
        path, below = path.parent, path.name
        if below != SEARCH and RunFolder(path).is_own:
            raise OtherRunError(f"{folder} would lie in the folder of the run {path}; choose another experiment.name")
