"""Processes that were started, and processes that were asked for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import invoke, mistake
from runs import quick, quick_file

from biotorch import experiment
from biotorch.errors import SectionError
from biotorch.experiment import ConfigError, estimating, run
from biotorch.experiment.estimating import best_jobs
from biotorch.experiment.executors import Local
from biotorch.training import InfrastructureConfig, distributed, launch
from biotorch.training.distributed import one_of_several, one_process


@pytest.fixture
def torchrun(monkeypatch):
    def started(here, everywhere):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))
        monkeypatch.setenv("WORLD_SIZE", str(everywhere))

    return started


def test_several_machines_need_somebody_who_starts_them():
    with pytest.raises(SectionError, match=r"num_nodes: .*torchrun or Slurm"):
        launch(InfrastructureConfig(num_nodes=2))


@pytest.mark.parametrize(("here", "everywhere", "nodes"), [(1, 2, 1), (2, 4, 1), (2, 2, 2)])
def test_another_number_of_machines_than_was_started_is_told(torchrun, here, everywhere, nodes):
    torchrun(here, everywhere)
    with pytest.raises(SectionError, match=f"num_nodes: {nodes} x {here} processes .* has started {everywhere}"):
        launch(InfrastructureConfig(num_nodes=nodes))


def test_a_list_of_devices_has_to_be_as_long_as_the_processes_are_many(torchrun, monkeypatch):
    torchrun(2, 2)
    monkeypatch.setattr(distributed.torch.cuda, "is_available", lambda: True)
    with pytest.raises(SectionError, match="gpus: 3 devices are listed, but 2 processes"):
        launch(InfrastructureConfig(gpus=[0, 1, 2]))


def test_where_slurm_is_installed_nothing_advises_to_start_by_srun(tmp_path, monkeypatch, recwarn):
    (tmp_path / "srun").touch(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert not one_of_several()
    launch(InfrastructureConfig())
    one_process()
    assert [str(each.message) for each in recwarn] == []


def test_slurm_is_recognised(slurm, monkeypatch):
    slurm(4)
    for name in ("SLURM_NNODES", "SLURM_NTASKS_PER_NODE"):
        monkeypatch.setenv(name, "2")
    assert distributed._processes_started(nodes=2) == 2
    with pytest.raises(
        SectionError, match=r"1 x 2 processes \(machines x processes on each\) were expected, but .* has started 4"
    ):
        distributed._processes_started(nodes=1)


@pytest.fixture
def slurm(monkeypatch):
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    return lambda tasks: monkeypatch.setenv("SLURM_NTASKS", str(tasks))


def start_by_torchrun(request, processes):
    request.getfixturevalue("torchrun")(processes, processes)


def start_by_slurm(request, processes):
    request.getfixturevalue("slurm")(processes)


@pytest.mark.parametrize("start", [start_by_torchrun, start_by_slurm])
def test_points_run_at_once_only_in_a_process_that_was_started_alone(request, start, tmp_path, monkeypatch):
    monkeypatch.setattr(estimating, "cores", lambda: 8)
    study = quick(tmp_path, "sweep={model.mode.type: [fa, dfa]}")
    start(request, 1)
    assert not one_of_several()
    assert best_jobs(study.points) == 2
    start(request, 2)
    assert one_of_several()
    assert best_jobs(study.points) == 1
    with pytest.raises(ConfigError, match="--jobs: torchrun or Slurm has started the processes"):
        run(study, executor=Local(2))
    assert not (study.folder / "rule=fa" / "metrics.jsonl").exists()


def test_an_interactive_job_of_slurm_starts_nothing(slurm, monkeypatch):
    slurm(2)
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")
    assert not one_of_several()


@pytest.mark.parametrize("command", ["run", "search"])
def test_commands_in_processes_of_slurm_take_one_point_after_another(slurm, command, tmp_path, monkeypatch):
    slurm(2)
    monkeypatch.setattr(estimating, "cores", lambda: 8)
    executors = []

    def stop(*given, **options):
        executors.append((*given, *options.values())[-1])
        raise ConfigError("seen")

    monkeypatch.setattr(experiment, "run", stop)
    monkeypatch.setattr("biotorch.experiment.study.run_points", stop)
    monkeypatch.setattr("biotorch.experiment.command._once", lambda study, action: action())
    assert "seen" in mistake(invoke(command, quick_file(tmp_path), "sweep={model.mode.type: [fa, dfa]}"))
    assert executors == [None]


def test_half_precision_on_a_cpu_is_told_and_recorded_as_what_it_is():
    with pytest.warns(UserWarning, match="not support 16-mixed, so bf16-mixed is used"):
        fabric = launch(InfrastructureConfig(precision="16-mixed"))
    assert fabric.strategy.precision.precision == "bf16-mixed"


def test_a_missing_device_is_told():
    if distributed.torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    with pytest.warns(UserWarning, match=r"gpus is 0, but there is no CUDA device"):
        assert launch(InfrastructureConfig(gpus=0)).device.type == "cpu"


SCRIPT = """
import atexit, glob, pathlib, torch
from biotorch.training import InfrastructureConfig, launch

def threads():
    print(sum("gloo" in pathlib.Path(path).read_text() for path in glob.glob("/proc/self/task/*/comm")))

atexit.register(threads)  # the first to be registered is the last to be called
for _ in range(2):
    fabric = launch(InfrastructureConfig(strategy="ddp"))
    fabric.setup(torch.nn.Linear(2, 2))(torch.ones(1, 2)).sum().backward()
threads()
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
def test_no_thread_of_a_process_group_is_left_to_the_end_of_the_interpreter_which_could_abort():
    found = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    before, after = map(int, found.stdout.split())
    assert before > 0
    assert after == 0
