"""The jobs of a study: jobs.json says which they are, and the files beside it how they ended."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
from collections.abc import Iterable
from pathlib import Path

from biotorch import writing
from biotorch.experiment.config import Config
from biotorch.experiment.executors.base import Failure
from biotorch.experiment.reading import ConfigError


@dataclasses.dataclass
class Job:
    """A job, as it stands in jobs.json, and what is known of it."""

    number: str
    processes: int
    config: str
    state: str = "PENDING"
    dead_since: float | None = None

    def outcome(self, folder: Path) -> tuple[bool, Failure | None]:
        """Whether it has said how it ended, and what it said."""
        for rank in range(self.processes):
            try:
                kind, content = pickle.loads((folder / f"{self.number}_{rank}_result.pkl").read_bytes())
            except (FileNotFoundError, EOFError, pickle.UnpicklingError):  # not there, or half of it
                continue
            if kind == "error":
                return True, Failure("defect", content.strip().splitlines()[-1], content)
            if rank == 0:
                return True, content
        return False, None

    def error_log(self, folder: Path) -> Path:
        return folder / f"{self.number}_0_log.err"


class JobList:
    """By point, the job that was last submitted for it; a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Job]:
        """Raises ConfigError where the file is damaged."""
        if not self.path.is_file():
            return {}
        try:
            return {name: Job(**each) for name, each in json.loads(self.path.read_text()).items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{self.path} cannot be read: see with squeue whether jobs of this study run, then remove it"
            ) from error

    def add(self, jobs: dict[str, Job]) -> None:
        """Put these beside, or in the place of, those that are there."""
        kept = ("number", "processes", "config")
        tree = {name: {key: getattr(job, key) for key in kept} for name, job in (self.read() | jobs).items()}
        writing.write_text(self.path, json.dumps(tree, indent=1) + "\n")


def named(jobs: Iterable[Job]) -> str:
    """How many, and which."""
    numbers = sorted((job.number for job in jobs), key=lambda each: [int(part) for part in each.split("_")])
    shown = numbers if len(numbers) <= 4 else [numbers[0], "...", numbers[-1]]
    return f"{len(numbers)} Slurm job{'s' * (len(numbers) != 1)} ({', '.join(shown)})"


def digest(config: Config) -> str:
    """Of what a run computes."""
    tree = config.model_dump(mode="json", exclude={"cluster", "logging", "sweep", "attacks"})
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
