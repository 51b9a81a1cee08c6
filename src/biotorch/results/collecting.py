"""Search of folders for runs: finished runs, unfinished runs, and unreadable files."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from biotorch._names import nearest
from biotorch.errors import DamagedResultError
from biotorch.experiment.folder import RunFolder
from biotorch.experiment.identity import BESIDE_THE_POINT, Key, told_apart
from biotorch.experiment.results import STUDY, Result, load_results, load_study
from biotorch.results.groups import in_order

#: Keys that may differ between a run and the study of its network.
_NOT_OF_THE_NETWORK: tuple[Key, ...] = (*BESIDE_THE_POINT, ("infrastructure",), ("evaluation",), ("data", "batch_size"))
#: Keys that change the training and validation images, but not those that are attacked.
_NOT_OF_THE_TEST: tuple[Key, ...] = tuple(("data", key) for key in ("validation", "validation_size", "augment"))


@dataclasses.dataclass(frozen=True)
class Run:
    """Finished run.

    Attributes:
        path: folder of the run.
        result: content of results.json.
        study: content of attacks/study.json, or None if the robustness of this network has not been studied.
    """

    path: Path
    result: Result
    study: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Collection:
    """Runs found below some folders.

    Attributes:
        runs: finished runs, each folder once: by data set and network, in the order of the rules, then by path.
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
            result = load_results(path)
        except (DamagedResultError, OSError) as error:
            problems.append(str(error))
            continue
        if result is None:
            unfinished.append(path)
        else:
            run = Run(path, result)
            runs.append(dataclasses.replace(run, study=_study(run, problems)))
    if not found:
        raise FileNotFoundError(
            f"no runs in {', '.join(map(str, roots))} (neither results.json nor config.yaml): name the folder of a run "
            "or of a sweep, such as runs/quickstart"
        )
    return Collection(in_order(runs, lambda run: run.result), unfinished, problems)


def _run_folders(root: Path) -> Iterable[Path]:
    """Run folders in or below `root`; subfolders of a run folder are not searched."""
    for place, folders, files in os.walk(root):
        path = Path(place)
        folder = RunFolder(path)
        if folder.results.name in files or folder.config.name in files:
            folders.clear()
            yield path


def _study(run: Run, problems: list[str]) -> dict[str, Any] | None:
    """Robustness study of the run's network; a damaged one, and one of another network, is a problem."""
    file = run.path / STUDY
    try:
        study = load_study(run.path)
        if study is None:
            return None
        again = f"`biotorch attack {run.path}` measures this network on the run's data"
        if (why := _why_foreign(study, run.result)) is not None:
            raise DamagedResultError(f"{file} {why}; {again}")
        if (twin := study.get("twin_state_hash")) is not None and twin != _best_hash(Path(study["twin"]), twin):
            raise DamagedResultError(f"{file} has transfers from a twin that is another network now; {again} again")
    except (DamagedResultError, OSError) as error:
        problems.append(str(error))
        return None
    return study


def _why_foreign(study: dict[str, Any], result: Result) -> str | None:
    """Clause that says why a study is not of the run's network and test images; None if it is, as far as they tell."""
    network, elsewhere = "is a study of another network than the run's", "was measured on other data than the run's"
    hashes = result.get("best_state_hash"), study.get("state_hash")
    known, equal = None not in hashes, hashes[0] == hashes[1]
    without = (*_NOT_OF_THE_NETWORK, *(_NOT_OF_THE_TEST if known and equal else ()))
    if told := told_apart(study["config"], result["config"], ("in the run", "in the study"), without):
        of_data = known and equal and all(each.startswith("data.") for each in told)
        return f"{elsewhere if of_data else network} ({'; '.join(told)})"
    if known and not equal:
        return f"{network} (its weights have other values)"
    digests = [(each.get("data") or {}).get("digest") for each in (result, study)]
    return f"{elsewhere} (its files differ)" if None not in digests and digests[0] != digests[1] else None


def _best_hash(run: Path, unknown: str) -> str:
    """Hash of the best network of a run, or `unknown` if the run is not there or of an earlier version."""
    try:
        found = (load_results(run) or {}).get("best_state_hash")
    except DamagedResultError:  # a problem of that run
        found = None
    return str(found or unknown)
