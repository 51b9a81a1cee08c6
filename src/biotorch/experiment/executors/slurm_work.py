"""What a Slurm job does: run a point, and before it has to go save and put itself back into the queue."""

from __future__ import annotations

import dataclasses
import importlib
import os
import signal
import time
from types import FrameType
from typing import Any

import torch

from biotorch.experiment.executors.base import Failure, Task, execute
from biotorch.experiment.signals import Interrupted

#: Seconds that a job waits for Slurm to kill it, or for its first process to fail by itself.
_UNTIL_KILLED, _FIRST_PROCESS = 600.0, 10.0


@dataclasses.dataclass(frozen=True)
class Work:
    """What each process of a job calls."""

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
            time.sleep(_FIRST_PROCESS)  # it fails for the same reason, or waits for this one until it is killed
            raise RuntimeError(f"in process {os.environ['SLURM_PROCID']}: {failure.message}")
        return failure

    def _go(self, asked_to_go: _AskedToGo) -> Failure | None:
        """The checkpoint is written: back into the queue, or wait for Slurm to do what it wants to."""
        until = time.monotonic() + _UNTIL_KILLED
        while not asked_to_go.came:
            # scancel, or a preemption after which Slurm itself puts the job back; to end now would be to have failed.
            if time.monotonic() > until:
                return Failure("defect", "its process was stopped by SIGTERM, which was not Slurm's")
            time.sleep(0.2)
        try:
            asked_to_go.requeue()
        except importlib.import_module("submitit").core.utils.UncompletedJobError:
            limits = f"{self.requeues + 1} time limit{'s' * (self.requeues > 0)} of {self.minutes} minutes"
            text = f"it was not finished after {limits}; its checkpoint is kept: raise cluster.minutes or .requeues"
            return Failure("mistake", text)
        return None

    def checkpoint(self, task: Task) -> Any:
        """For submitit: what the job does when it starts again; the checkpoint is in the folder of the point."""
        return importlib.import_module("submitit").helpers.DelayedSubmission(self, task)


class _AskedToGo:
    """Slurm's signal before a time limit or a preemption (SIGUSR2, see submitit), turned into a request to stop.

    submitit by itself would leave in the middle of an update, with the checkpoint that happens to be there.
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
        """What submitit does: the first process puts the job back into the queue and exits.

        Raises UncompletedJobError where the job may not be put back any more.
        """
        self._theirs(self._number, None)
