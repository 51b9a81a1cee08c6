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
from biotorch.experiment.reading import Study
from biotorch.experiment.results import Result, load_results
from biotorch.experiment.run import run_point
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
    display = display or Display()
    done, failures = ({}, {}) if overwrite else _known(study, display)
    left = {name: config for name, config in study.points.items() if name not in done and name not in failures}
    with stop_requests() as request:
        if executor is None:
            _one_by_one(study, left, overwrite, display, request, done, failures)
        elif left:
            with executor:
                _side_by_side(study, left, overwrite, display, request, executor, done, failures)
    in_order = {name: done[name] for name in study.points if name in done}
    if failures:
        raise BrokenPointsError(
            in_order, {name: failures[name] for name in study.points if name in failures}, study.folder
        )
    return in_order


def _known(study: Study, display: Display) -> tuple[dict[str, Result], dict[str, Failure]]:
    """The points that are finished already, and those whose results cannot be read."""
    done: dict[str, Result] = {}
    failures: dict[str, Failure] = {}
    for name, config in study.points.items():
        try:
            result = finished(config, RunFolder(study.folder / name))
        except DamagedResultError as error:
            if len(study.points) == 1:
                raise
            failures[name] = Failure.of(error)
            continue
        if result is not None:
            done[name] = result
            display.finished(name, result)
    return done, failures


def _one_by_one(
    study: Study,
    left: Mapping[str, Config],
    overwrite: bool,
    display: Display,
    request: StopRequest,
    done: dict[str, Result],
    failures: dict[str, Failure],
) -> None:
    for name, config in left.items():
        display.start(name, config)
        try:
            done[name] = run_point(config, study.folder / name, overwrite, display, request)
        except Exception as error:  # whatever it is, the other points are run, and it is told at the end
            if len(study.points) == 1 or torch.distributed.is_initialized():  # other processes may wait for this one
                raise
            failures[name] = _keep(Failure.of(error), study.folder / name)
            display.failed(name, failures[name].message)
        else:
            display.finished(name, done[name])


def _side_by_side(
    study: Study,
    left: Mapping[str, Config],
    overwrite: bool,
    display: Display,
    request: StopRequest,
    executor: Executor,
    done: dict[str, Result],
    failures: dict[str, Failure],
) -> None:
    shown: dict[str, int] = {}
    waiting = set(left)
    with request.deferred():
        executor.submit([Task(name, config, study.folder / name, overwrite) for name, config in left.items()])
        while waiting and request.number is None:
            ended = executor.wait(_LOOK)
            _pass_on(executor, display)
            _show(executor, display, shown)
            for task, failure in ((each.task, each.failure) for each in ended):
                waiting.discard(task.name)
                result = None if failure is not None else load_results(task.path)
                if result is None:
                    failures[task.name] = _keep(
                        failure or Failure("defect", "it has ended without a result"), task.path
                    )
                    display.failed(task.name, failures[task.name].message)
                else:
                    done[task.name] = result
                    display.finished(task.name, result)
    if waiting:
        executor.stop()
        _pass_on(executor, display)
        raise Interrupted(request.number or signal.SIGTERM)


def _pass_on(executor: Executor, display: Display) -> None:
    for message in executor.messages():
        display.warn(message)


def _show(executor: Executor, display: Display, shown: dict[str, int]) -> None:
    """Tell the display of the epochs that running points have written since the last look."""
    for task in executor.running():
        records = _records(RunFolder(task.path).metrics)
        if task.name not in shown:
            display.start(task.name, task.config)
            shown[task.name] = max(0, len(records) - 1)  # of an earlier command, where there are any
        for record in records[shown[task.name] :]:
            display.epoch(record, task.name)
        shown[task.name] = len(records)


def _records(path: Path) -> list[Record]:
    """The whole lines of a metrics.jsonl."""
    try:
        lines = path.read_text().split("\n")[:-1]
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


def _keep(failure: Failure, path: Path) -> Failure:
    """Write it into the folder of its point."""
    with contextlib.suppress(OSError):  # a full disk may be what it tells of: it is printed, too
        _files.write_text(RunFolder(path).error, failure.traceback or f"{failure.message}\n")
    return failure
