"""All points of a study: those that are finished are left alone, those that break do not stop the rest."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Mapping
from pathlib import Path

import torch.distributed

from biotorch import _files
from biotorch.errors import BrokenPointsError, DamagedResultError, Failure, Interrupted
from biotorch.experiment.config import Config
from biotorch.experiment.display import Display
from biotorch.experiment.executors.base import Executor, Task
from biotorch.experiment.folder import RunFolder
from biotorch.experiment.identity import finished
from biotorch.experiment.point import run_point
from biotorch.experiment.reading import Study
from biotorch.experiment.results import Result, load_results
from biotorch.experiment.signals import StopRequest, stop_requests
from biotorch.training import Record

#: Seconds between two looks at what the processes of an executor have written.
_LOOK = 0.5


def run(
    study: Study, overwrite: bool = False, display: Display | None = None, executor: Executor | None = None
) -> dict[str, Result]:
    """Run every point of `study` and return the results by point name ("" without a sweep).

    A finished point is not run again, an unfinished one continues from its last checkpoint.

    Args:
        study: as `read` gives it.
        overwrite: forget what earlier runs have written.
        display: is told what happens.
        executor: where points run; default: one after another in this process.

    Raises:
        OtherRunError: a folder holds a run of another configuration, and `overwrite` is False.
        Interrupted: by SIGINT or SIGTERM; the last checkpoint is on disk.
        BrokenPointsError: after all others have been run, some points of a sweep have failed. What breaks the one
            point of a study without a sweep is raised as it is, see `run_point`.
    """
    progress = _Progress(study, display or Display())
    if not overwrite:
        progress.collect()
    left = progress.left
    with stop_requests() as request:
        if executor is None:
            progress.run_one_by_one(left, overwrite, request)
        elif left:
            with executor:
                progress.run_side_by_side(left, overwrite, request, executor)
    done, failures = progress.done, progress.failures
    in_order = {name: done[name] for name in study.points if name in done}
    if failures:
        raise BrokenPointsError(
            in_order, {name: failures[name] for name in study.points if name in failures}, study.folder
        )
    return in_order


class _Progress:
    """How far a study has come: results of the points that are done, and failures, by name."""

    def __init__(self, study: Study, display: Display) -> None:
        self.study, self.display = study, display
        self.done: dict[str, Result] = {}
        self.failures: dict[str, Failure] = {}
        #: Epochs of running points that the display has been told of.
        self._shown: dict[str, int] = {}

    @property
    def left(self) -> dict[str, Config]:
        """Configurations of the points that have neither."""
        ended = self.done.keys() | self.failures.keys()
        return {name: config for name, config in self.study.points.items() if name not in ended}

    def collect(self) -> None:
        """Take in points that earlier commands have finished, and those whose results cannot be read."""
        for name, config in self.study.points.items():
            try:
                result = finished(config, RunFolder(self.study.folder / name))
            except DamagedResultError as error:
                if len(self.study.points) == 1:
                    raise
                self.failures[name] = Failure.of(error)
                continue
            if result is not None:
                self._finish(name, result)

    def run_one_by_one(self, left: Mapping[str, Config], overwrite: bool, request: StopRequest) -> None:
        """Run points in this process."""
        for name, config in left.items():
            self.display.start(name, config)
            try:
                result = run_point(config, self.study.folder / name, overwrite, self.display, request)
            except Exception as error:  # whatever it is, the other points are run, and it is reported at the end
                # Other processes may wait for this one.
                if len(self.study.points) == 1 or torch.distributed.is_initialized():
                    raise
                self._fail(name, Failure.of(error))
            else:
                self._finish(name, result)

    def run_side_by_side(
        self, left: Mapping[str, Config], overwrite: bool, request: StopRequest, executor: Executor
    ) -> None:
        """Run points in the processes of an executor, and show what they write."""
        waiting = set(left)
        with request.deferred():
            executor.submit([Task(name, config, self.study.folder / name, overwrite) for name, config in left.items()])
            while waiting and request.number is None:
                ended = executor.wait(_LOOK)
                self._pass_on(executor)
                self._show(executor)
                for task, failure in ((each.task, each.failure) for each in ended):
                    waiting.discard(task.name)
                    result = None if failure is not None else load_results(task.path)
                    if result is None:
                        self._fail(task.name, failure or Failure("defect", "it has ended without a result"))
                    else:
                        self._finish(task.name, result)
        if waiting:
            executor.stop()
            self._pass_on(executor)
            raise Interrupted(request.number or signal.SIGTERM)

    def _finish(self, name: str, result: Result) -> None:
        self.done[name] = result
        self.display.finished(name, result)

    def _fail(self, name: str, failure: Failure) -> None:
        """Note a failure, also in the folder of its point."""
        with contextlib.suppress(OSError):  # a full disk may be the failure: it is printed, too
            path = RunFolder(self.study.folder / name).error
            _files.write_text(path, failure.traceback or f"{failure.message}\n")
        self.failures[name] = failure
        self.display.failed(name, failure.message)

    def _pass_on(self, executor: Executor) -> None:
        for message in executor.messages():
            self.display.warn(message)

    def _show(self, executor: Executor) -> None:
        """Report the epochs that running points have written since the last look."""
        for task in executor.running():
            records = _records(RunFolder(task.path).metrics)
            if task.name not in self._shown:
                self.display.start(task.name, task.config)
                self._shown[task.name] = max(0, len(records) - 1)  # of an earlier command, where there are any
            for record in records[self._shown[task.name] :]:
                self.display.epoch(record, task.name)
            self._shown[task.name] = len(records)


def _records(path: Path) -> list[Record]:
    """The whole lines of a metrics.jsonl."""
    try:
        lines = path.read_text().split("\n")[:-1]
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]
