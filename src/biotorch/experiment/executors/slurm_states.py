"""What has become of Slurm jobs: squeue, and for those that it has forgotten sacct, where there is one."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Set
from typing import ClassVar

#: States in which nothing more comes. PREEMPTED is one where Slurm does not put jobs back.
_DEAD = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT", "UNKNOWN",
}  # fmt: skip

#: Beginnings of the reasons for which a job waits that somebody has to take away.
_STUCK = ("AccountNotAllowed", "BadConstraints", "Invalid", "JobHeld", "JobHold", "launch failed", "Partition")

_SECONDS = 30


@dataclasses.dataclass(frozen=True)
class State:
    """Slurm's name of a state, and why the job waits."""

    name: str
    reason: str = ""

    UNKNOWN: ClassVar[State]

    @property
    def stuck(self) -> bool:
        """Whether it waits for something that does not come by itself."""
        return self.name == "PENDING" and self.reason.startswith(_STUCK)


State.UNKNOWN = State("UNKNOWN")


def dead(name: str) -> bool:
    """Whether a job in this state has ended."""
    return name in _DEAD


def ask(jobs: Set[str]) -> dict[str, State] | None:
    """The state of each of these jobs that Slurm still knows ("12", or "12_3" of an array); None: no answer."""
    if not jobs:
        return {}
    arrays = ",".join(sorted({job.partition("_")[0] for job in jobs}))
    found = _lines("squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r", f"--jobs={arrays}")
    if found is None:
        return None
    states = {number: State(name, reason) for number, name, reason in found}
    if jobs - states.keys():
        # "CANCELLED by 1000"
        known = _lines(
            "sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State", f"--jobs={arrays}"
        )
        states = {number: State(name.split()[0]) for number, name in known or ()} | states
    return {job: states[job] for job in jobs & states.keys()}


def _lines(*command: str) -> list[list[str]] | None:
    """The fields of each line; None where there is no answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0 and "Invalid job id" not in done.stderr:  # forgotten
        return None
    return [line.split("|") for line in done.stdout.splitlines() if line]
