"""Slurm jobs of a study: the list of jobs, their states (squeue, sacct), and the work inside a job."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import os
import pickle
import signal
import subprocess
import time
from collections.abc import Iterable, Set
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

import torch

from biotorch import _files
from biotorch.errors import ConfigError, Failure, Interrupted
from biotorch.experiment.config import Config
from biotorch.experiment.executors.base import Task, execute
from biotorch.experiment.identity import text_of, what_counts

#: States of jobs that have ended. A job stays PREEMPTED only where Slurm does not put preempted jobs back.
_DEAD = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT", "UNKNOWN",
}  # fmt: skip

#: Beginnings of waiting reasons that do not go away without somebody's action.
_STUCK = ("AccountNotAllowed", "BadConstraints", "Invalid", "JobHeld", "JobHold", "launch failed", "Partition")

_SECONDS = 30


@dataclasses.dataclass(frozen=True)
class State:
    """Slurm's name of a job's state, and the reason why the job waits."""

    name: str
    reason: str = ""

    UNKNOWN: ClassVar[State]

    @property
    def stuck(self) -> bool:
        """Whether the job waits for something that somebody has to change."""
        return self.name == "PENDING" and self.reason.startswith(_STUCK)


State.UNKNOWN = State("UNKNOWN")


def dead(name: str) -> bool:
    """Whether a job in this state has ended."""
    return name in _DEAD


def ask(jobs: Set[str]) -> dict[str, State] | None:
    """States of those jobs ("12", or "12_3" of an array) that Slurm still knows; None if Slurm does not answer."""
    if not jobs:
        return {}
    arrays = ",".join(sorted({job.partition("_")[0] for job in jobs}))
    found = _lines("squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r", f"--jobs={arrays}")
    if found is None:
        return None
    states = {number: State(name, reason) for number, name, reason in found}
    if jobs - states.keys():
        # sacct's state may have more words, such as "CANCELLED by 1000".
        known = _lines(
            "sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State", f"--jobs={arrays}"
        )
        states = {number: State(name.split()[0]) for number, name in known or ()} | states
    return {job: states[job] for job in jobs & states.keys()}


def _lines(*command: str) -> list[list[str]] | None:
    """Fields of each line of a command's output, or None without an answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0 and "Invalid job id" not in done.stderr:  # Slurm has forgotten the job
        return None
    return [line.split("|") for line in done.stdout.splitlines() if line]


@dataclasses.dataclass
class Job:
    """Job as recorded in jobs.json, with its last known state.

    Attributes:
        number: number of the job.
        processes: number of its processes.
        config: digest of its configuration.
        discards: mark of the earlier run that it discards when it begins, or "".
        state: last known state.
        dead_since: time at which the job was first seen to have ended.
    """

    number: str
    processes: int
    config: str
    discards: str = ""
    state: str = "PENDING"
    dead_since: float | None = None

    def outcome(self, folder: Path) -> tuple[bool, Failure | None]:
        """Whether the job has written how it ended, and its failure, if any."""
        for rank in range(self.processes):
            try:
                kind, content = pickle.loads((folder / f"{self.number}_{rank}_result.pkl").read_bytes())
            except (FileNotFoundError, EOFError, pickle.UnpicklingError):  # missing, or not completely written
                continue
            if kind == "error":
                return True, Failure("defect", content.strip().splitlines()[-1], content)
            if rank == 0:
                return True, content
        return False, None

    def error_log(self, folder: Path) -> Path:
        """Path of the first process's stderr."""
        return folder / f"{self.number}_0_log.err"


class JobList:
    """File that records, for each point, the job that was last submitted for it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Job]:
        """Read the jobs by point. Raises ConfigError if the file is damaged."""
        if not self.path.is_file():
            return {}
        try:
            return {name: Job(**each) for name, each in json.loads(self.path.read_text()).items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{self.path} cannot be read; check with squeue whether jobs of this study run, then remove the file"
            ) from error

    def add(self, jobs: dict[str, Job]) -> None:
        """Add jobs to the file; a job replaces an earlier one of the same point."""
        kept = ("number", "processes", "config", "discards")
        tree = {name: {key: getattr(job, key) for key in kept} for name, job in (self.read() | jobs).items()}
        _files.write_text(self.path, json.dumps(tree, indent=1) + "\n")


def named(jobs: Iterable[Job]) -> str:
    """Number and numbers of jobs as text, such as `2 Slurm jobs (7_0, 7_1)`."""
    numbers = sorted((job.number for job in jobs), key=lambda each: [int(part) for part in each.split("_")])
    shown = numbers if len(numbers) <= 4 else [numbers[0], "...", numbers[-1]]
    return f"{len(numbers)} Slurm job{'s' * (len(numbers) != 1)} ({', '.join(shown)})"


def digest(config: Config) -> str:
    """Digest of every setting that changes a run's numbers."""
    return hashlib.sha256(text_of(what_counts(config.model_dump(mode="json"))).encode()).hexdigest()


#: Seconds that a stopped job waits for Slurm to kill it, and that a failed process waits for the first one to fail.
_UNTIL_KILLED, _FIRST_PROCESS = 600.0, 10.0


@dataclasses.dataclass(frozen=True)
class Work:
    """Function that each process of a job calls with its task."""

    threads: int
    minutes: int
    requeues: int

    def __call__(self, task: Task) -> Failure | None:
        asked_to_go = _AskedToGo()
        torch.set_num_threads(self.threads)
        try:
            failure = execute(task)
        except Interrupted:
            return self._go(asked_to_go)
        if failure is not None and int(os.environ.get("SLURM_PROCID", "0")) > 0:
            time.sleep(_FIRST_PROCESS)  # the first fails for the same reason, or is killed while it waits
            raise RuntimeError(f"in process {os.environ['SLURM_PROCID']}: {failure.message}")
        return failure

    def _go(self, asked_to_go: _AskedToGo) -> Failure | None:
        """Put the job back into the queue, or wait for Slurm to end it. The checkpoint is already written."""
        until = time.monotonic() + _UNTIL_KILLED
        while not asked_to_go.came:
            # SIGTERM came from scancel, or from a preemption after which Slurm itself puts the job back. A job that
            # ended now would count as failed.
            if time.monotonic() > until:
                return Failure("defect", "its process was stopped by a SIGTERM that Slurm did not send")
            time.sleep(0.2)
        try:
            asked_to_go.requeue()
        except importlib.import_module("submitit").core.utils.UncompletedJobError:
            limits = f"{self.requeues + 1} time limit{'s' * (self.requeues > 0)} of {self.minutes} minutes"
            text = f"not finished after {limits}; its checkpoint is kept; raise cluster.minutes or cluster.requeues"
            return Failure("mistake", text)
        return None

    def checkpoint(self, task: Task) -> Any:
        """Work that submitit starts again after a requeue; the checkpoint is in the folder of the point."""
        return importlib.import_module("submitit").helpers.DelayedSubmission(self, task)


class _AskedToGo:
    """Handler that turns Slurm's signal before a time limit or preemption (SIGUSR2, see submitit) into a SIGTERM.

    submitit's own handler would end the process in the middle of an update, with whatever checkpoint exists.
    """

    def __init__(self) -> None:
        self.came = False
        self._number = getattr(signal, "SIG" + os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2"))
        self._theirs: Any = signal.signal(self._number, self._take)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if not self.came:
            self.came = True
            signal.raise_signal(signal.SIGTERM)

    def requeue(self) -> None:
        """Call submitit's handler, with which the first process puts the job back into the queue and exits.

        Raises UncompletedJobError if the job must not be put back again.
        """
        self._theirs(self._number, None)
