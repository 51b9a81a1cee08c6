"""Section `cluster` of a configuration: resources that each point of a study asks Slurm or Ray for."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from biotorch._sections import Section
from biotorch.errors import SectionError

#: Options of sbatch that another setting decides, with that setting.
_DECIDED = {
    "account": "cluster.account",
    "array": "--jobs",
    "cpus_per_task": "cluster.cpus_per_task",
    "error": "the folder of the study",
    "gpus_per_node": "infrastructure.gpus, or cluster.processes_per_node",
    "job_name": "experiment.name",
    "mem": "cluster.memory_gb",
    "nodes": "infrastructure.num_nodes",
    "ntasks": "cluster.processes_per_node",
    "ntasks_per_node": "cluster.processes_per_node",
    "open_mode": "nothing: output is appended, because a job may start several times",
    "output": "the folder of the study",
    "partition": "cluster.partition",
    "signal": "cluster.grace_seconds",
    "time": "cluster.minutes",
}


class RayConfig(Section):
    """Section `cluster.ray`: the Ray cluster and the environment of its workers."""

    address: str | None = None
    """Address of a running cluster: `auto` on one of its machines, `ray://host:10001` from elsewhere, or host:port.
    Without it, a cluster of this machine alone is started, with as many workers as --jobs says."""
    runtime_env: dict[str, Any] = Field(default_factory=dict)
    """Ray's runtime environment of the workers, such as {py_modules: [my_rules], env_vars: {...}}."""


class ClusterConfig(Section):
    """Section `cluster`: settings of --executor slurm and --executor ray. They change none of a run's numbers."""

    minutes: int = Field(default=240, ge=2)
    """Slurm's time limit of a job, in minutes. A run that needs longer is put back into the queue and continues."""
    requeues: int = Field(default=50, ge=0)
    """Number of times that a job may be put back into the queue at its time limit. With 0, a job that does not finish
    within one limit fails."""
    grace_seconds: int = Field(default=60, ge=10, le=3600)
    """Seconds before the time limit at which the run is asked to save and stop. They must be longer than an update and
    the writing of a checkpoint."""
    partition: str | None = None
    account: str | None = None
    memory_gb: float | None = Field(default=None, gt=0)
    """Memory per machine, in GB. Default: the cluster's default."""
    cpus_per_task: int | None = Field(default=None, ge=1)
    """CPUs of each process. Default: infrastructure.threads (or 1) plus data.num_workers."""
    processes_per_node: int | None = Field(default=None, ge=1)
    """Processes of a point per machine, each with its own GPU if the point uses GPUs. Default: one per device of
    infrastructure.gpus. The number of machines is infrastructure.num_nodes."""
    options: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Further options of sbatch, such as {qos: high, constraint: a100, exclusive: true}."""
    setup: list[str] = Field(default_factory=list)
    """Shell lines that a Slurm job runs first, such as `module load cuda`."""
    ray: RayConfig = RayConfig()

    @model_validator(mode="before")
    @classmethod
    def _imports_have_moved(cls, values: Any) -> Any:
        """Accept the empty `imports` that configurations of earlier runs contain."""
        if isinstance(values, dict) and "imports" in values:
            if values["imports"]:
                raise SectionError({"imports": "it has moved to the top of the file, as `imports:`"})
            return {key: value for key, value in values.items() if key != "imports"}
        return values

    @field_validator("options")
    @classmethod
    def _free(cls, options: dict[str, Any]) -> dict[str, Any]:
        problems = {}
        for name, value in options.items():
            decided = _DECIDED.get(name.replace("-", "_"))
            if decided is not None:
                problems[name] = f"this option follows from {decided}"
            elif value is False:
                problems[name] = "write true for an option without a value; leave out an unwanted one"
        if problems:
            raise SectionError({f"options.{name}": text for name, text in problems.items()})
        return options

    @model_validator(mode="after")
    def _time_to_work(self) -> ClusterConfig:
        if self.grace_seconds > 30 * self.minutes:  # Slurm may also signal up to a minute early
            raise SectionError({"grace_seconds": f"this is more than half of the time limit of {self.minutes} minutes"})
        return self
