"""The `cluster` section: what is asked of Slurm or Ray for each point of a study."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from biotorch._sections import Section
from biotorch.errors import SectionError

#: Options of sbatch that follow from something else: what to set instead.
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
    """`cluster.ray`."""

    address: str | None = None
    """Of a running cluster: `auto` on one of its machines, `ray://host:10001` from elsewhere, or host:port. Without
    it a cluster of this machine alone is started, with as many workers as --jobs says."""
    runtime_env: dict[str, Any] = Field(default_factory=dict)
    """Ray's runtime environment of the workers, such as {py_modules: [my_rules], env_vars: {...}}."""


class ClusterConfig(Section):
    """`cluster`: for --executor slurm and --executor ray; it changes nothing of what a run computes."""

    minutes: int = Field(default=240, ge=2)
    """Slurm's time limit of a job. A run that needs more is put back into the queue and continues."""
    requeues: int = Field(default=50, ge=0)
    """How often a job may be put back at its time limit; 0: what it does not finish within one limit fails."""
    grace_seconds: int = Field(default=60, ge=10, le=3600)
    """Before the time limit the run is told to save and go: longer than an update and the writing of a checkpoint."""
    partition: str | None = None
    account: str | None = None
    memory_gb: float | None = Field(default=None, gt=0)
    """Per machine; default: what the cluster gives."""
    cpus_per_task: int | None = Field(default=None, ge=1)
    """CPUs of each process; default: infrastructure.threads (or 1) and the data's workers."""
    processes_per_node: int | None = Field(default=None, ge=1)
    """Processes of a point per machine, each on a GPU of its own where it uses GPUs; default: one per device
    of infrastructure.gpus. The machines of a point are infrastructure.num_nodes."""
    options: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Further options of sbatch, such as {qos: high, constraint: a100, exclusive: true}."""
    setup: list[str] = Field(default_factory=list)
    """Lines of shell that a Slurm job runs first, such as `module load cuda`."""
    ray: RayConfig = RayConfig()

    @model_validator(mode="before")
    @classmethod
    def _imports_have_moved(cls, values: Any) -> Any:
        """Configurations of earlier runs have the key, mostly empty."""
        if isinstance(values, dict) and "imports" in values:
            if values["imports"]:
                raise SectionError({"imports": "it stands at the top of the file now, as `imports:`"})
            return {key: value for key, value in values.items() if key != "imports"}
        return values

    @field_validator("options")
    @classmethod
    def _free(cls, options: dict[str, Any]) -> dict[str, Any]:
        problems = {}
        for name, value in options.items():
            decided = _DECIDED.get(name.replace("-", "_"))
            if decided is not None:
                problems[name] = f"it follows from {decided}"
            elif value is False:
                problems[name] = "true is an option without a value; what is not to be given is left out"
        if problems:
            raise SectionError({f"options.{name}": text for name, text in problems.items()})
        return options

    @model_validator(mode="after")
    def _time_to_work(self) -> ClusterConfig:
        if self.grace_seconds > 30 * self.minutes:  # and Slurm may send its signal up to a minute early
            raise SectionError({"grace_seconds": f"more than half of the time limit of {self.minutes} minutes"})
        return self
