"""Executor on a Slurm cluster, through submitit: one job array per study, which outlives the submitting process."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from biotorch._names import require
from biotorch.errors import ConfigError, Failure
from biotorch.experiment.cluster import ClusterConfig
from biotorch.experiment.executors import slurm_job
from biotorch.experiment.executors.base import Ended, Executor, Task
from biotorch.experiment.executors.slurm_job import Job, JobList, Work, digest, named
from biotorch.experiment.folder import RunFolder

#: Seconds between two queries of Slurm, and seconds after which an ended job's file should be visible on this machine.
_ASK, _FILE_SYSTEM = 10.0, 15.0


class Slurm(Executor):
    """Executor with one Slurm job per point, at most `jobs` at once. The jobs continue when this process ends.

    When the same study is submitted again, it finds its jobs in `folder/slurm/jobs.json` and watches them. A job that
    must stop (time limit, preemption) writes a checkpoint. Slurm then puts it back into the queue, and it continues.

    Args:
        folder: folder of the study, which every machine of the cluster must see at this path.
        jobs: largest number of jobs at once in an array. Points that need machines of different kinds are in
            different arrays.
        cluster: resources to ask for.

    Raises:
        ConfigError: sbatch is not installed.
        MissingPackageError: submitit is not installed.
    """

    detached = True

    def __init__(self, folder: Path, jobs: int, cluster: ClusterConfig | None = None) -> None:
        super().__init__()
        self.folder, self.jobs, self.cluster = folder.resolve() / "slurm", jobs, cluster or ClusterConfig()
        if shutil.which("sbatch") is None:
            raise ConfigError(
                "--executor slurm: there is no sbatch here; run this on a login machine of a cluster, or install "
                "Slurm's commands (Debian: apt-get install slurm-client)"
            )
        self._submitit: Any = require("submitit", "slurm", "--executor slurm")
        self._list = JobList(self.folder / "jobs.json")
        self._tasks: dict[str, Task] = {}
        self._jobs: dict[str, Job] = {}
        self._asked, self._told = -_ASK, set[str]()

    # Submitting --------------------------------------------------------------------------------------

    def submit(self, tasks: Sequence[Task]) -> None:
        """Submit the tasks that have no job yet.

        Raises:
            ConfigError: a point's job is alive, but the point has another configuration or is to be overwritten; a
                point asks for devices that a job does not have; or sbatch refuses.
        """
        asked = {task.name: self._asked_for(task) for task in tasks}
        self._tasks = {task.name: task for task in tasks}
        self._find(tasks)
        shapes: dict[tuple[Any, ...], list[Task]] = {}
        for task in tasks:
            if task.name not in self._jobs:
                shapes.setdefault(tuple(sorted(asked[task.name].items())), []).append(task)
        for shape, alike in shapes.items():
            self._submit(alike, dict(shape))

    def _find(self, tasks: Sequence[Task]) -> None:
        """Find the jobs of an earlier command that are still alive, and watch them."""
        earlier = self._list.read()
        known = {job.number for job in earlier.values()}
        states = slurm_job.ask(known)
        if states is None:
            raise ConfigError(
                f"--executor slurm: squeue does not answer, and {self._list.path} lists jobs; try again later"
            )
        for task in tasks:
            job = earlier.get(task.name)
            if job is None:
                continue
            job.state = states.get(job.number, slurm_job.State.UNKNOWN).name
            ended, failure = job.outcome(self.folder)
            if failure is not None:
                self._messages.append(f"{task.name}: submitted again, as job {job.number} broke: {failure.message}")
            if ended or slurm_job.dead(job.state):
                continue
            anew = RunFolder(task.path, task.discards).discarded not in (
                "",
                job.discards,
            )  # marked after the job was submitted
            if anew or job.config != digest(task.config):
                wanted = "--overwrite" if anew else "another configuration"
                raise ConfigError(
                    f"{task.path} is being written by Slurm job {job.number}, but {wanted} is asked for; wait for the "
                    f"job, or end it with `scancel {job.number}`"
                )
            self._jobs[task.name] = job
        if self._jobs:
            self._messages.append(f"already submitted: {named(self._jobs.values())}; logs in {self.folder}")

    def _submit(self, tasks: Sequence[Task], shape: dict[str, Any]) -> None:
        """Submit one array of tasks that need machines of the same kind."""
        cluster = self.cluster
        executor = self._submitit.SlurmExecutor(self.folder, max_num_timeout=cluster.requeues)
        name = tasks[0].config.experiment.name.replace("/", "-")
        cpus = shape["cpus_per_task"]
        additional = {key.replace("-", "_"): value for key, value in cluster.options.items()}
        optional = {"partition": cluster.partition, "account": cluster.account, "setup": cluster.setup or None}
        if cluster.memory_gb is not None:
            optional["mem"] = f"{round(cluster.memory_gb * 1024)}MB"
        executor.update_parameters(
            **shape,
            **{key: value for key, value in optional.items() if value is not None},
            job_name=f"biotorch-{name}",
            time=cluster.minutes,
            signal_delay_s=cluster.grace_seconds,
            array_parallelism=self.jobs,
            additional_parameters={"requeue": True, **additional},
            # Since Slurm 22.05 srun does not inherit the first option from sbatch. Without the second, processes would
            # wait for the gradients of a process that has died.
            srun_args=[f"--cpus-per-task={cpus}", "--kill-on-bad-exit=1"],
        )
        discards = {task.name: _claimed(task) for task in tasks}
        work = Work(cpus, cluster.minutes, cluster.requeues)
        try:
            jobs = executor.map_array(work, [_absolute(task) for task in tasks])
        except self._submitit.core.utils.FailedJobError as error:
            raise ConfigError(f"--executor slurm: sbatch refuses: {str(error).strip()}") from error
        processes = shape["nodes"] * shape["ntasks_per_node"]
        new = {
            task.name: Job(job.job_id, processes, digest(task.config), discards[task.name])
            for task, job in zip(tasks, jobs, strict=True)
        }
        self._jobs.update(new)
        self._list.add(new)
        self._messages.append(f"submitted: {named(new.values())}; logs in {self.folder}")

    def _asked_for(self, task: Task) -> dict[str, Any]:
        """Machines, processes and CPUs of a task, as options of sbatch.

        Raises ConfigError if its devices are not numbered from 0, as they are inside a job.
        """
        infrastructure = task.config.infrastructure
        gpus = infrastructure.gpus
        devices = [gpus] if isinstance(gpus, int) else gpus
        numbered = list(range(len(devices)))
        if gpus != -1 and sorted(devices) != numbered:
            raise ConfigError(
                f"infrastructure.gpus: {gpus}: Slurm chooses the devices of a job, which numbers them from 0; write "
                f"{0 if isinstance(gpus, int) else numbered}"
            )
        processes = self.cluster.processes_per_node or len(devices)
        asked = {
            "nodes": infrastructure.num_nodes,
            "ntasks_per_node": processes,
            "cpus_per_task": self.cluster.cpus_per_task or (infrastructure.threads or 1) + task.config.data.num_workers,
        }
        given = {"gpus", "gpus_per_task", "gres"} & {name.replace("-", "_") for name in self.cluster.options}
        if gpus != -1 and not given:
            asked["gpus_per_node"] = processes
        return asked

    # Watching ----------------------------------------------------------------------------------------

    def wait(self, seconds: float) -> list[Ended]:
        until = time.monotonic() + seconds
        while not (ended := self._look()) and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.5))
        return ended

    def _look(self) -> list[Ended]:
        if time.monotonic() - self._asked >= _ASK:
            self._ask()
        ended = []
        for name, job in list(self._jobs.items()):
            over, failure = job.outcome(self.folder)
            if not over and job.dead_since is not None and time.monotonic() - job.dead_since >= _FILE_SYSTEM:
                over, failure = True, self._death(job)
            if over:
                del self._jobs[name]
                ended.append(Ended(self._tasks[name], failure))
        return ended

    def _ask(self) -> None:
        """Ask Slurm for the state of the jobs; without an answer, the last known states stay."""
        self._asked = time.monotonic()
        states = slurm_job.ask({job.number for job in self._jobs.values()})
        if states is None:
            self._tell("squeue does not answer; asking again")
            return
        for name, job in self._jobs.items():
            state = states.get(job.number, slurm_job.State.UNKNOWN)
            job.state = state.name
            if not slurm_job.dead(state.name):
                job.dead_since = None
            elif job.dead_since is None:
                job.dead_since = time.monotonic()
            if state.stuck:
                self._tell(f"{name}: Slurm does not start job {job.number}: {state.reason}")

    def _death(self, job: Job) -> Failure:
        """Failure of a job that has ended without a result."""
        where = f"; see {log}" if (log := job.error_log(self.folder)).is_file() else ""
        told = {
            "UNKNOWN": "is no longer known to Slurm",
            "OUT_OF_MEMORY": "ran out of memory (OUT_OF_MEMORY); raise cluster.memory_gb",
            "TIMEOUT": "was killed at its time limit (TIMEOUT) before it could save; raise cluster.grace_seconds",
        }.get(job.state, f"ended as {job.state}")
        return Failure("died", f"Slurm job {job.number} {told}{where}")

    def running(self) -> list[Task]:
        return [self._tasks[name] for name, job in self._jobs.items() if job.state in ("RUNNING", "COMPLETING")]

    def stop(self) -> None:
        """Leave the jobs running, and add a message that names them."""
        if self._jobs:
            numbers = sorted({job.number.partition("_")[0] for job in self._jobs.values()}, key=int)
            self._messages.append(
                f"still queued or running: {named(self._jobs.values())}. The same command watches them again; "
                f"`scancel {' '.join(numbers)}` ends them"
            )

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Do nothing, because the jobs belong to Slurm and not to this process."""

    def _tell(self, message: str) -> None:
        """Add a message, unless it was added before."""
        if message not in self._told:
            self._told.add(message)
            self._messages.append(message)


def _absolute(task: Task) -> Task:
    return dataclasses.replace(task, path=task.path.resolve())


def _claimed(task: Task) -> str:
    """Make a run's folder ours before its job is submitted; return the mark of the run in it that is to be discarded.

    Raises:
        OtherRunError, LockedError: the folder cannot be written to, see `RunFolder.lock`.
    """
    folder = RunFolder(task.path, task.discards)
    with folder.locked():
        return folder.discarded
