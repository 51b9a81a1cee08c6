"""Points as tasks of a real Ray cluster of two workers on this machine."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import runs

from biotorch import models
from biotorch.errors import MissingPackageError
from biotorch.experiment import BrokenPointsError, ConfigError, Display, Interrupted, RunFolder, run
from biotorch.experiment.cluster import ClusterConfig, RayConfig
from biotorch.experiment.executors import Task
from biotorch.experiment.executors.ray import Ray

#: Long enough to be stopped on the way, with checkpoints that only a stop writes.
LONG = ("training.hyperparameters.epochs=25", "infrastructure.checkpoint_seconds=3600")


def ray_processes() -> dict[int, str]:
    """Processes of a Ray cluster of this machine by number."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if command.startswith("ray::") or "raylet/raylet" in command or "gcs_server" in command:
            found[int(path.parent.name)] = command
    return found


class StopAfter(Display):
    """Presses Ctrl-C once this many epochs have been seen; keeps what was told."""

    def __init__(self, epochs: int | None = None) -> None:
        self.left, self.warned = epochs, list[str]()

    def epoch(self, record, name=None) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGINT)

    def warn(self, message) -> None:
        self.warned.append(message)


def test_points_run_as_tasks(tmp_path, monkeypatch, capfd):
    """One point breaks, the others give the bits of a serial run; what a user registered is there; Ray is quiet."""
    module = tmp_path / "own_network.py"
    module.write_text("import runs\n\nruns.register_small()\n")
    monkeypatch.syspath_prepend(str(tmp_path))  # where the workers look, too
    monkeypatch.setitem(models.registry.OWN, "small", runs.small)
    own = ("model.architecture=small", "data.target_size=8", "imports=[own_network]")
    study = runs.quick(tmp_path, *own, "sweep={training.optimizer.lr: [0.01, 0.02, 1.0e+30]}")
    before = ray_processes()
    with pytest.raises(BrokenPointsError) as caught:
        run(study, executor=Ray(2, 1, ClusterConfig()))
    assert {name: each.kind for name, each in caught.value.failures.items()} == {"lr=1e+30": "diverged"}
    assert "DivergenceError" in caught.value.failures["lr=1e+30"].traceback
    alone = runs.finish(tmp_path / "alone", *own, "training.optimizer.lr=0.02")
    assert caught.value.results["lr=0.02"]["state_hash"] == alone["state_hash"]
    assert "".join(capfd.readouterr()) == ""
    assert ray_processes().keys() <= before.keys()


@pytest.mark.slow
def test_stopped_points_continue_to_the_same_bits(tmp_path):
    study = runs.quick(tmp_path, *LONG, "sweep={experiment.seed: [0, 1]}")
    with pytest.raises(Interrupted):
        run(study, display=StopAfter(epochs=5), executor=Ray(2, 1))
    for name in study.points:  # 3600 s between checkpoints: the second one is that of the stop
        assert (study.folder / name / "previous_latest_model.pth").is_file()
        assert not (study.folder / name / "results.json").exists()
    run(study, executor=Ray(2, 1))
    run(runs.quick(tmp_path / "alone", *LONG, "sweep={experiment.seed: [0, 1]}"))
    for name in study.points:
        assert runs.left_behind(study.folder / name) == runs.left_behind(tmp_path / "alone" / "quick" / name)


@pytest.mark.slow
def test_a_worker_that_is_killed_breaks_its_task_alone(tmp_path):
    study = runs.quick(tmp_path, "sweep={training.hyperparameters.epochs: [2000, 1, 2]}")
    before = ray_processes()
    with Ray(2, 1) as executor:
        executor.submit([Task(name, config, study.folder / name) for name, config in study.points.items()])
        first, ended, begin = study.folder / "epochs=2000", {}, time.monotonic()
        while len(ended) < 3:
            assert time.monotonic() - begin < 200
            ended |= {each.task.name: each.failure for each in executor.wait(1)}
            if len(ended) == 2 and RunFolder(first).metrics.is_file():
                for number, command in ray_processes().items():
                    if number not in before and command.startswith("ray::_work"):
                        os.kill(number, signal.SIGKILL)
    assert ended.pop("epochs=2000").message.startswith("its worker died (WorkerCrashedError)")
    assert ended == {"epochs=1": None, "epochs=2": None}
    assert not (first / "results.json").exists()
    assert ray_processes().keys() <= before.keys()


@pytest.mark.parametrize(
    ("infrastructure", "told"),
    [
        ("num_nodes: 2", "--executor slurm or torchrun"),
        ("gpus: [0, 1]", "--executor slurm or torchrun"),
        ("gpus: 3", "sees it as 0; write 0"),
    ],
)
def test_one_process_per_point(tmp_path, infrastructure, told):
    study = runs.quick(tmp_path, f"infrastructure={{{infrastructure}}}")
    with pytest.raises(ConfigError, match=told):
        Ray(1).submit([Task("", study.config, study.folder)])


def test_no_ray_here(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackageError, match=r"--executor ray needs ray: pip install 'biotorch-feedback\[ray\]'"):
        Ray(1)


@pytest.mark.slow
def test_no_cluster_at_the_address(tmp_path):
    study = runs.quick(tmp_path)
    with pytest.raises(ConfigError, match=r"cluster\.ray: "):
        Ray(1, cluster=ClusterConfig(ray=RayConfig(address="auto"))).submit([Task("", study.config, study.folder)])
