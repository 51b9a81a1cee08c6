"""Run of all points of a study: finished points are not run again, and a failed point does not stop the others."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch.distributed

from biotorch import _files, data
from biotorch.data import DataConfig
from biotorch.errors import (
    BiotorchError,
    BrokenPointsError,
    DamagedResultError,
    Failure,
    Interrupted,
    LostFolderError,
)
from biotorch.experiment import checkpoints
from biotorch.experiment.command import command, is_sweep
from biotorch.experiment.config import Config
from biotorch.experiment.display import Display
from biotorch.experiment.executors.base import Executor, Task
from biotorch.experiment.folder import RunFolder
from biotorch.experiment.identity import finished
from biotorch.experiment.planning import require_fit
from biotorch.experiment.point import run_point
from biotorch.experiment.reading import Study
from biotorch.experiment.results import Result, load_results
from biotorch.experiment.signals import StopRequest, stop_requests
from biotorch.training import Record

#: Seconds between two readings of the files that the processes of an executor write.
_LOOK = 0.5


def run(
    study: Study, overwrite: bool = False, display: Display | None = None, executor: Executor | None = None
) -> dict[str, Result]:
    """Run every point of `study` and return the results by point name ("" without a sweep).

    A finished point is not run again, an unfinished one continues from its last checkpoint.

    Args:
        study: the study, as `read` returns it.
        overwrite: whether to replace the results of earlier runs, see `command`.
        display: object whose methods are called to show the progress.
        executor: executor of the points; default: one after another in this process.

    Raises:
        OtherRunError, LockedError: as in `command`.
        LostFolderError, Interrupted, BrokenPointsError: as in `run_points`.

    Examples:
        >>> results = biotorch.experiment.run(biotorch.experiment.read("study.yaml"))
        >>> sorted(results)
        ['rule=backpropagation,seed=0', 'rule=backpropagation,seed=1', 'rule=fa,seed=0', 'rule=fa,seed=1']
    """
    with command(study, overwrite) as discards:
        return run_points(study, discards, display, executor)


def run_points(
    study: Study, discards: str, display: Display | None = None, executor: Executor | None = None
) -> dict[str, Result]:
    """Run the points of `study` inside of a `command`, which gives `discards`; the rest is as in `run`.

    Raises:
        LostFolderError: the folder of the study was deleted or replaced.
        Interrupted: by SIGINT or SIGTERM; the last checkpoint is on disk.
        BrokenPointsError: some points of a sweep have failed; it is raised after all others have been run. Without a
            sweep, the error of the only point is raised itself, see `run_point`.
    """
    progress = _Progress(study, discards, display or Display())
    progress.collect()
    with stop_requests() as request, progress:
        if executor is None or executor.here:
            progress.require_data()
        if is_sweep(study) and progress.left:
            RunFolder(study.folder).clear_report(whole=bool(discards))  # of the networks that were there before
        if executor is None:
            progress.run_one_by_one(request)
        elif progress.left:
            with executor:
                progress.run_side_by_side(request, executor)
    done, failures = progress.done, progress.failures
    in_order = {name: done[name] for name in study.points if name in done}
    if failures:
        raise BrokenPointsError(
            in_order, {name: failures[name] for name in study.points if name in failures}, study.folder
        )
    return in_order


class _Progress:
    """Progress of a study: results of the finished points and failures of the broken ones, by name."""

    def __init__(self, study: Study, discards: str, display: Display) -> None:
        self.study, self.discards, self.display = study, discards, display
        self.done: dict[str, Result] = {}
        self.failures: dict[str, Failure] = {}
        #: For each data set and its folder, the first finished point and the record of its data.
        self._data: dict[tuple[str, Path], tuple[str, dict[str, Any]]] = {}
        #: Number of epochs of each running point that the display has shown.
        self._shown: dict[str, int] = {}
        self._anchor: _files.Anchor | None = None

    def __enter__(self) -> _Progress:
        if is_sweep(self.study):  # the folder of a single run is held by its lock
            self.study.folder.mkdir(parents=True, exist_ok=True)
            self._anchor = _files.Anchor(self.study.folder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._anchor is not None:
            self._anchor.release()

    def _require_folder(self) -> None:
        if self._anchor is not None and not self._anchor.holds():
            raise LostFolderError(
                f"{self.study.folder} was deleted or replaced while its points ran, so nothing more is written; leave "
                "the folder where it is while it is in use"
            )

    @property
    def left(self) -> dict[str, Config]:
        """Configurations of the points that have neither a result nor a failure."""
        ended = self.done.keys() | self.failures.keys()
        return {name: config for name, config in self.study.points.items() if name not in ended}

    def collect(self) -> None:
        """Collect the results of earlier commands; a result that cannot be read counts as a failure."""
        described: dict[str, dict[str, Any]] = {}  # points share their data

        def describe(section: DataConfig) -> dict[str, Any]:
            key = section.model_dump_json()
            if key not in described:
                described[key] = data.describe(section)
            return described[key]

        for name, config in self.study.points.items():
            try:
                folder = RunFolder(self.study.folder / name, self.discards)
                result = None if folder.discarded else finished(config, folder, describe)
            except DamagedResultError as error:
                if len(self.study.points) == 1:
                    raise
                self.failures[name] = Failure.of(error)
                continue
            if result is not None:
                self._finish(name, result)

    def require_data(self) -> None:
        """Break the points that are left whose data are not on this machine or do not fit, before the first one runs.

        Raises the error of the data set if there is nothing else to do.
        """
        problems: dict[str, Exception | None] = {}
        broken: dict[str, list[str]] = {}
        for name, config in self.left.items():
            key = _of_the_data(config)
            if key not in problems:
                problems[key] = _problem(config, alone=len(self.left) == 1)
            if problems[key] is not None:
                broken.setdefault(key, []).append(name)
        for key, names in broken.items():
            error = problems[key]
            assert error is not None
            if len(names) == len(self.study.points):
                raise error
            self._fail(names, Failure.of(error))

    def run_one_by_one(self, request: StopRequest) -> None:
        """Run the points that are left one after another in this process."""
        for name, config in self.left.items():
            self._require_folder()
            self._begin(name, config, self._position(name))
            try:
                result = run_point(config, self.study.folder / name, self.display, request, self.discards)
            except Exception as error:  # of any kind: it is reported at the end, after the other points
                # Other processes may wait for this one.
                if len(self.study.points) == 1 or torch.distributed.is_initialized():
                    raise
                self._fail([name], Failure.of(error))
            else:
                self._finish(name, result)

    def run_side_by_side(self, request: StopRequest, executor: Executor) -> None:
        """Run the points that are left in the processes of an executor, and show the epochs that they write."""
        left = self.left
        places = {} if executor.detached else {name: self._position(name) for name in left}
        waiting = set(left)
        with request.deferred():
            executor.submit(
                [Task(name, config, self.study.folder / name, self.discards) for name, config in left.items()]
            )
            while waiting and request.number is None:
                ended = executor.wait(_LOOK)
                self._require_folder()
                self._pass_on(executor)
                self._show([*(each.task for each in ended), *executor.running()], places)
                for task, failure in ((each.task, each.failure) for each in ended):
                    waiting.discard(task.name)
                    result = None if failure is not None else load_results(task.path)
                    if result is None:
                        self._fail([task.name], failure or Failure("defect", "the process ended without a result"))
                    else:
                        self._finish(task.name, result)
        if waiting:
            executor.stop()
            self._pass_on(executor)
            raise Interrupted(request.number or signal.SIGTERM)

    def _finish(self, name: str, result: Result) -> None:
        config = self.study.points[name].data
        record = result.get("data") or {}  # of an older version, it may be missing
        first, known = self._data.setdefault((config.dataset, config.folder), (name, record))
        if (found := data.difference(known, record)) is not None:
            self.display.warn(f"{first} and {name} were trained on different data ({found}): do not compare them")
        self.done[name] = result
        self.display.finished(name, result)

    def _fail(self, names: list[str], failure: Failure) -> None:
        """Record the failure of points, and write it into their folders, if they may be written to."""
        for name in names:
            folder = RunFolder(self.study.folder / name)
            if failure.kind != "lost":
                # It may be a full disk, files of others or another process's lock; the failure is also printed.
                with contextlib.suppress(OSError, BiotorchError), folder.locked():
                    _files.write_text(folder.error, failure.traceback or f"{failure.message}\n")
            self.failures[name] = failure
        self.display.failed(names, failure.message)

    def _pass_on(self, executor: Executor) -> None:
        for message in executor.messages():
            self.display.warn(message)

    def _position(self, name: str) -> tuple[int, int] | None:
        """Epoch and update at which a point continues, or None if it starts."""
        folder = RunFolder(self.study.folder / name, self.discards)
        return None if folder.discarded else checkpoints.position(folder.latest)

    def _begin(self, name: str, config: Config, place: tuple[int, int] | None) -> None:
        if place is None:
            self.display.start(name, config)
        else:
            self.display.continues(name, config, *place)

    def _show(self, tasks: Iterable[Task], places: Mapping[str, tuple[int, int] | None]) -> None:
        """Show the tasks that have begun, in `places` if they continue, and the epochs written since the last call."""
        for task in tasks:
            records = _records(RunFolder(task.path).metrics)
            if task.name not in self._shown:
                self._begin(task.name, task.config, places.get(task.name))
                self._shown[task.name] = max(0, len(records) - 1)  # lines of an earlier command
            for record in records[self._shown[task.name] :]:
                self.display.epoch(record, task.name)
            self._shown[task.name] = len(records)


def _records(path: Path) -> list[Record]:
    """Records in the complete lines of a metrics.jsonl."""
    try:
        lines = path.read_text().split("\n")[:-1]
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


def _of_the_data(config: Config) -> str:
    """Text of the settings that `require_fit` looks at, which is equal for points that share them."""
    top_k = 1 if config.training is None else config.training.metrics.top_k
    loss = None if config.model.loss_function is None else config.model.loss_function.model_dump(mode="json")
    return json.dumps([config.data.model_dump(mode="json"), loss, top_k])


def _problem(config: Config, alone: bool) -> Exception | None:
    """Reason why the data of a configuration are not on this machine or do not fit it, or None.

    A point that is alone finds the latter out itself, and lists of image files would take time to be read twice.
    """
    try:
        data.require_present(config.data)
        if not alone and not config.data.in_files:
            require_fit(config)
    except (BiotorchError, OSError) as error:
        return error
    return None
