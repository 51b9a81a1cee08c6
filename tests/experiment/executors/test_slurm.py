"""Jobs of a real Slurm of one machine, where its daemons can be started; see slurm/start.sh."""

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import runs
from places import HELPERS

from biotorch.experiment import BrokenPointsError, ConfigError, Display, run
from biotorch.experiment.cluster import ClusterConfig
from biotorch.experiment.executors import Task, slurm, slurm_job
from biotorch.experiment.executors.slurm import Slurm

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
SCRIPTS = Path(__file__).parent / "slurm"

#: Long enough to be stopped on the way, with checkpoints that only a stop writes.
LONG = ("training.hyperparameters.epochs=25", "infrastructure.checkpoint_seconds=3600", "data.validation_size=400")

ENDLESS = (*LONG, "training.hyperparameters.epochs=2000")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Slurm's commands find the cluster of this module."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: apt-get install munge slurmctld slurmd slurm-client")
    if os.geteuid() != 0:
        pytest.skip("slurmd is started by root")
    folder = tmp_path_factory.mktemp("cluster")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    subprocess.run([SCRIPTS / "start.sh", folder, str(port)], check=True, stdout=subprocess.DEVNULL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        patch.setattr(slurm, "_ASK", 0.5)
        patch.setattr(slurm, "_FILE_SYSTEM", 3.0)
        yield
    subprocess.run([SCRIPTS / "stop.sh", folder], check=True)


class Told(Display):
    """What a study has told."""

    def __init__(self) -> None:
        self.warned: list[str] = []

    def warn(self, message: str) -> None:
        self.warned.append(message)


def tasks(study) -> list[Task]:
    return [Task(name, config, study.folder / name) for name, config in study.points.items()]


def job(study, name: str = "") -> str:
    return json.loads((study.folder / "slurm" / "jobs.json").read_text())[name]["number"]


def until(happened, seconds: float = 200) -> None:
    begin = time.monotonic()
    while not happened():
        assert time.monotonic() - begin < seconds
        time.sleep(0.2)


def epochs(path: Path) -> int:
    return len((path / "metrics.jsonl").read_text().splitlines()) if (path / "metrics.jsonl").is_file() else 0


def ended(executor: Slurm) -> dict:
    """The failure of each task, once all have ended."""
    found: dict = {}
    until(lambda: found.update({each.task.name: each.failure for each in executor.wait(1)}) or not executor._jobs)
    return found


def test_an_array_of_points_of_which_one_breaks(cluster, tmp_path):
    study = runs.quick(tmp_path, "sweep={training.optimizer.lr: [0.01, 1.0e+30]}")
    told = Told()
    with pytest.raises(BrokenPointsError) as caught:
        run(study, display=told, executor=Slurm(study.folder, 2))
    assert {name: each.kind for name, each in caught.value.failures.items()} == {"lr=1e+30": "diverged"}
    assert "submitted: 2 Slurm jobs (" in told.warned[0]
    alone = runs.finish(tmp_path / "alone", "training.optimizer.lr=0.01")
    assert caught.value.results["lr=0.01"]["state_hash"] == alone["state_hash"]


@pytest.mark.slow
@pytest.mark.parametrize("by", ["USR2", "requeue"])
def test_what_has_to_go_comes_back_and_goes_on_to_the_same_bits(cluster, tmp_path, by):
    """Slurm's signal before a time limit, and a node that Slurm takes away from the job."""
    study = runs.quick(tmp_path, *LONG)
    executor = Slurm(study.folder, 1, ClusterConfig(minutes=60))
    executor.submit(tasks(study))
    until(lambda: epochs(study.folder) >= 2)
    command = ["scontrol", "requeue", job(study)] if by == "requeue" else ["scancel", "--signal=USR2", job(study)]
    subprocess.run(command, check=True)
    assert ended(executor) == {"": None}
    shown = subprocess.run(["scontrol", "show", "job", job(study)], capture_output=True, text=True, check=True).stdout
    assert "Restarts=1" in shown
    log = (study.folder / "slurm" / f"{job(study)}_0_log.out").read_text()
    assert ("Requeued job" in log) == (by == "USR2")
    runs.finish(tmp_path / "alone", *LONG)
    assert runs.left_behind(study.folder) == runs.left_behind(tmp_path / "alone" / "quick")


@pytest.mark.slow
def test_what_does_not_fit_its_time_limits(cluster, tmp_path):
    """Slurm's own signal at a real limit, of which there is one."""
    study = runs.quick(tmp_path, *ENDLESS)
    executor = Slurm(study.folder, 1, ClusterConfig(minutes=2, grace_seconds=50, requeues=0))
    executor.submit(tasks(study))
    failure = ended(executor)[""]
    assert failure.kind == "mistake"
    assert failure.message.startswith("not finished after 1 time limit of 2 minutes; its checkpoint is kept")
    assert (study.folder / "previous_latest_model.pth").is_file()


@pytest.mark.slow
def test_jobs_outlive_the_command_that_submitted_them(cluster, tmp_path):
    """Ctrl-C leaves them; the same study watches them, and does not submit twice; scancel is a failure."""
    study = runs.quick(tmp_path, *ENDLESS)
    watching = subprocess.Popen(
        [sys.executable, HELPERS / "slurm_worker.py", tmp_path, *ENDLESS], stdout=subprocess.PIPE, text=True
    )
    until(lambda: epochs(study.folder) >= 1)
    watching.send_signal(signal.SIGINT)
    assert watching.communicate(timeout=60)[0] == "stopped\n"
    number, begun = job(study), epochs(study.folder)

    with pytest.raises(ConfigError, match=f"job {number}, but another configuration is asked for"):
        Slurm(study.folder, 1).submit(tasks(runs.quick(tmp_path, *ENDLESS, "training.optimizer.lr=0.02")))
    mark = study.folder / ".discard"
    mark.write_text("of a command after this job's")
    anew = [dataclasses.replace(task, discards=mark.read_text()) for task in tasks(study)]
    with pytest.raises(ConfigError, match=f"--overwrite is asked for.*`scancel {number}`"):
        Slurm(study.folder, 1).submit(anew)
    mark.unlink()

    executor = Slurm(study.folder, 1)
    executor.submit(tasks(study))
    assert job(study) == number
    assert executor.messages() == [f"already submitted: 1 Slurm job ({number}); logs in {study.folder / 'slurm'}"]
    until(lambda: epochs(study.folder) > begun)  # it has gone on
    executor.stop()
    assert f"`scancel {number}` ends them" in executor.messages()[0]

    subprocess.run(["scancel", number], check=True)
    failure = ended(executor)[""]
    assert failure.message.startswith(f"Slurm job {number} ended as CANCELLED; see {study.folder}/slurm/{number}_0_log")
    assert (study.folder / "previous_latest_model.pth").is_file()  # a second checkpoint: written because of scancel


@pytest.mark.slow
def test_the_processes_of_one_run(cluster, tmp_path):
    """Two processes under srun find each other; where one is killed the job fails."""
    study = runs.quick(tmp_path, "data.validation_size=1400")
    result = run(study, executor=Slurm(study.folder, 1, ClusterConfig(processes_per_node=2)))
    assert result[""]["environment"]["processes"] == 2

    study = runs.quick(tmp_path, *ENDLESS, "experiment.name=killed")
    executor = Slurm(study.folder, 1, ClusterConfig(processes_per_node=2))
    executor.submit(tasks(study))
    until(lambda: epochs(study.folder) >= 1)
    listed = subprocess.run(["scontrol", "listpids", job(study)], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listed.splitlines()]  # PID JOBID STEPID LOCALID GLOBALID
    os.kill(next(int(row[0]) for row in rows if row[4] == "1"), signal.SIGKILL)
    assert ended(executor)[""].kind in (
        "defect",
        "died",
    )  # the other one has lost its connection, and nobody waits for ever


@pytest.mark.slow
def test_sbatch_refuses(cluster, tmp_path):
    study = runs.quick(tmp_path)
    with pytest.raises(ConfigError, match=r"sbatch refuses.*nvalid partition"):
        Slurm(study.folder, 1, ClusterConfig(partition="none")).submit(tasks(study))


def test_no_sbatch_here(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"no sbatch here.*slurm-client"):
        Slurm(tmp_path, 1)


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Stand-ins for Slurm's commands: `commands(squeue="...")` says what one prints."""

    def install(**printed: str) -> None:
        for name, text in printed.items():
            path = tmp_path / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"#!/bin/sh\n{text}\n")
            path.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return install


def test_states_come_from_squeue_and_then_from_sacct(commands):
    commands(
        squeue="echo '12_0|RUNNING|None'; echo '12_1|PENDING|PartitionTimeLimit'; echo '12_2|PENDING|Resources'",
        sacct="echo '12_3|CANCELLED by 1000'; echo '12_0|PENDING'",
    )
    states = slurm_job.ask({"12_0", "12_1", "12_2", "12_3", "13"})
    assert states is not None
    names = {job: state.name for job, state in states.items()}
    assert names == {"12_0": "RUNNING", "12_1": "PENDING", "12_2": "PENDING", "12_3": "CANCELLED"}
    assert [job for job, state in states.items() if state.stuck] == ["12_1"]
    assert slurm_job.dead("CANCELLED")
    assert not slurm_job.dead("RUNNING")


def test_a_controller_that_does_not_answer_is_no_death(commands):
    commands(squeue="echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    assert slurm_job.ask({"12"}) is None
    commands(squeue="echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", sacct="exit 1")
    assert slurm_job.ask({"12"}) == {}


@pytest.mark.parametrize(
    ("gpus", "cluster", "asked"),
    [
        ("-1", {}, {"nodes": 2, "ntasks_per_node": 1, "cpus_per_task": 3}),
        ("[0, 1, 2]", {}, {"nodes": 2, "ntasks_per_node": 3, "cpus_per_task": 3, "gpus_per_node": 3}),
        ("0", {"processes_per_node": 8}, {"nodes": 2, "ntasks_per_node": 8, "cpus_per_task": 3, "gpus_per_node": 8}),
        ("[0, 1]", {"options": {"gres": "gpu:2"}}, {"nodes": 2, "ntasks_per_node": 2, "cpus_per_task": 3}),
    ],
)
def test_one_process_per_device(commands, tmp_path, gpus, cluster, asked):
    commands(sbatch="", srun="")
    study = runs.quick(tmp_path, f"infrastructure={{gpus: {gpus}, num_nodes: 2, threads: 1}}", "data.num_workers=2")
    assert Slurm(study.folder, 1, ClusterConfig(**cluster))._asked_for(tasks(study)[0]) == asked


def test_devices_of_a_job_are_numbered_from_0(commands, tmp_path):
    commands(sbatch="", srun="")
    study = runs.quick(tmp_path, "infrastructure.gpus=[2, 3]")
    with pytest.raises(ConfigError, match=r"numbers them from 0; write \[0, 1\]"):
        Slurm(study.folder, 1).submit(tasks(study))


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"options": {"time": 5}}, "cluster.minutes"),
        ({"options": {"ntasks-per-node": 5}}, "cluster.processes_per_node"),
        ({"options": {"exclusive": False}}, "leave out"),
        ({"minutes": 2, "grace_seconds": 90}, "more than half of the time limit"),
    ],
)
def test_mistakes_in_the_section(section, told):
    with pytest.raises(ValueError, match=told):
        ClusterConfig(**section)
