"""Search of folders for runs: finished runs, unfinished runs, and unreadable files."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from biotorch._names import nearest
from biotorch.errors import DamagedResultError
from biotorch.experiment.folder import RunFolder
from biotorch.experiment.results import Result, load_results

#: Keys of results.json that every reader of a result relies on.
_NEEDED = ("config", "history", "test", "validation", "environment", "seconds", "state_hash")


@dataclasses.dataclass(frozen=True)
class Run:
    """Finished run.

    Attributes:
        path: folder of the run.
        result: content of results.json.
        study: content of attacks/study.json, or None if its robustness has not been studied.
    """

    path: Path
    result: Result
    study: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Collection:
    """Runs found below some folders.

    Attributes:
        runs: finished runs, sorted by path, each folder once.
        unfinished: folders of runs that have begun but not ended.
        problems: one sentence for each unusable file, with its path.
    """

    runs: list[Run]
    unfinished: list[Path]
    problems: list[str]

    @property
    def results(self) -> list[Result]:
        """Results of all finished runs."""
        return [run.result for run in self.runs]

    @property
    def studies(self) -> list[dict[str, Any]]:
        """Contents of study.json of all runs whose robustness was studied."""
        return [run.study for run in self.runs if run.study is not None]


def collect(folders: Iterable[Path | str] | Path | str) -> Collection:
    """All runs in or below the folders, which may be folders of runs, of sweeps or of several of either.

    Raises:
        FileNotFoundError: a folder does not exist, or no folder contains a run.
    """
    found: dict[Path, Path] = {}
    roots = [Path(each) for each in ([folders] if isinstance(folders, Path | str) else folders)]
    for root in roots:
        if not root.is_dir():
            parent = root.parent
            near = [each.name for each in parent.iterdir() if each.is_dir()] if parent.is_dir() else []
            raise FileNotFoundError(f"no folder {root}{nearest(root.name, near)}")
        for path in _run_folders(root):
            found.setdefault(path.resolve(), path)
    runs: list[Run] = []
    unfinished: list[Path] = []
    problems: list[str] = []
    for path in sorted(found.values()):
        try:
            result = _checked(path)
        except (DamagedResultError, OSError) as error:
            problems.append(str(error))
            continue
        if result is None:
            unfinished.append(path)
        else:
            runs.append(Run(path, result, _study(path, problems)))
    if not found:
        raise FileNotFoundError(f"no runs in {', '.join(map(str, roots))}: found neither results.json nor config.yaml")
    return Collection(runs, unfinished, problems)


def _run_folders(root: Path) -> Iterable[Path]:
    """Run folders in or below `root`; subfolders of a run folder are not searched."""
    for place, folders, files in os.walk(root):
        path = Path(place)
        folder = RunFolder(path)
        if folder.results.name in files or folder.config.name in files:
            folders.clear()
            yield path


def _checked(path: Path) -> Result | None:
    result = load_results(path)
    if result is None:
        return None
    missing = [name for name in _NEEDED if name not in result]
    if missing:
        version = (result.get("environment") or {}).get("biotorch", "unknown")
        raise DamagedResultError(
            f"{path / 'results.json'} was written by another version of biotorch ({version}) and lacks "
            f"{', '.join(missing)}; run this point again with --overwrite"
        )
    return result


def _study(path: Path, problems: list[str]) -> dict[str, Any] | None:
    file = path / "attacks" / "study.json"
    if not file.is_file():
        return None
    try:
        study = json.loads(file.read_text())
        if not isinstance(study, dict) or not {"config", "study", "environment"} <= study.keys():
            raise ValueError("it contains no study")
    except ValueError as error:
        problems.append(f"{file} is damaged ({error}); `biotorch attack {path}` writes it again")
        return None
    return study
