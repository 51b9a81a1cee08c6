"""Several points at once, points that break, and processes that are stopped or killed."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from commands import invoke
from runs import quick, quick_file

from biotorch.errors import Failure
from biotorch.experiment import BrokenPointsError, read, run
from biotorch.experiment import estimating as estimation
from biotorch.experiment.estimating import best_jobs, estimates
from biotorch.experiment.executors import Local, Task

RULES = "sweep={model.mode.type: [fa, dfa, usf]}"
#: The second point diverges.
BROKEN = (
    "sweep={point: {fa: {model.mode.type: fa}, bad: {training.optimizer.lr: 1.0e+30}, "
    "dfa: {model.mode.type: dfa}, usf: {model.mode.type: usf}}}"
)


def hashes(results):
    return {name: result["state_hash"] for name, result in results.items()}


def test_points_at_once_give_what_they_give_one_after_another_and_one_that_breaks_stops_no_other(tmp_path):
    found = {}
    for jobs in (1, 2):
        study = quick(tmp_path / str(jobs), BROKEN)
        with pytest.raises(BrokenPointsError, match=r"1 of 4 points have no result.*error\.txt") as caught:
            run(study, executor=Local(jobs) if jobs > 1 else None)
        found[jobs] = caught.value.results
        assert list(found[jobs]) == ["point=fa", "point=dfa", "point=usf"]
        assert {name: failure.kind for name, failure in caught.value.failures.items()} == {"point=bad": "diverged"}
        assert "DivergenceError" in (study.folder / "point=bad" / "error.txt").read_text()
        again = quick(tmp_path / str(jobs), BROKEN.replace("1.0e+30", "0.02"), "training.hyperparameters.epochs=1")
        assert len(run(again, overwrite=True)) == 4
        assert not (study.folder / "point=bad" / "error.txt").exists()
    assert hashes(found[2]) == hashes(found[1])
    assert [each["test"] for each in found[2].values()] == [each["test"] for each in found[1].values()]


def test_the_error_of_a_study_of_one_point_is_raised_as_it_is(tmp_path):
    with pytest.raises(Exception, match="the loss is") as caught:
        run(quick(tmp_path, "training.optimizer.lr=1.0e+30"))
    assert not isinstance(caught.value, BrokenPointsError)


def test_points_that_break_alike_are_told_once(tmp_path):
    study = quick(tmp_path, RULES)
    failures = {name: Failure("mistake", "no such data") for name in ("rule=fa", "rule=usf")}
    text = str(BrokenPointsError({}, failures, study))
    assert text.count("no such data") == 1
    assert "rule=fa, rule=usf: no such data" in text


def test_a_damaged_result_breaks_its_point_alone(tmp_path):
    study = quick(tmp_path, RULES)
    results = run(study)
    damaged = study.folder / "rule=dfa" / "results.json"
    damaged.write_text(damaged.read_text()[:50])
    with pytest.raises(BrokenPointsError, match=r"damaged.*delete it") as caught:
        run(study)
    assert hashes(caught.value.results) == {k: v for k, v in hashes(results).items() if k != "rule=dfa"}
    damaged.unlink()
    assert hashes(run(study)) == hashes(results)


@pytest.mark.parametrize("moment", ["starting", "running"])
def test_a_worker_that_is_killed_breaks_its_task_alone(moment, tmp_path):
    study = quick(tmp_path, RULES, "training.hyperparameters.epochs=3")
    tasks = [Task(name, config, study.folder / name) for name, config in study.points.items()]
    ended = []
    with Local(1) as executor:
        executor.submit(tasks)
        if moment == "running":
            _wait_for(tasks[0].path / "metrics.jsonl")
        os.kill(executor._workers[0]._process.pid, signal.SIGKILL)
        while len(ended) < 3:
            ended += executor.wait(1.0)
    assert [each.task.name for each in ended] == ["rule=fa", "rule=dfa", "rule=usf"]
    assert [each.failure and each.failure.kind for each in ended] == ["died", None, None]
    assert "SIGKILL" in ended[0].failure.message
    assert len(run(study)) == 3  # the killed one goes on


LONG = ("training.hyperparameters.epochs=30", "sweep={model.mode.type: [fa, usf]}", "training.optimizer.lr=0.001")


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_stops_all_with_checkpoints_and_the_same_command_continues_to_the_same_bits(tmp_path, number):
    process = _start(tmp_path, *LONG, "--jobs", "2")
    points = [tmp_path / "quick" / f"rule={rule}" for rule in ("fa", "usf")]
    for point in points:
        _wait_for(point / "metrics.jsonl", lines=2, process=process)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + number, told
    assert f"stopped by {signal.Signals(number).name}" in told
    assert all((point / "latest_model.pth").is_file() and not (point / "results.json").exists() for point in points)
    found = run(read(quick_file(tmp_path), LONG))
    assert hashes(found) == hashes(run(quick(tmp_path / "whole", *LONG)))


@pytest.mark.slow
def test_workers_save_and_go_when_their_parent_is_killed(tmp_path):
    process = _start(tmp_path, *LONG, "--jobs", "2")
    points = [tmp_path / "quick" / f"rule={rule}" for rule in ("fa", "usf")]
    for point in points:
        _wait_for(point / "metrics.jsonl", lines=2, process=process)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 60
    sizes = None
    while time.monotonic() < deadline:
        now = [(point / "metrics.jsonl").stat().st_size for point in points]
        if now == sizes and all((point / "latest_model.pth").is_file() for point in points):
            break
        sizes = now
        time.sleep(3)
    else:
        pytest.fail("the workers go on without their parent")
    assert not any((point / "results.json").exists() for point in points)


def test_the_command_tells_what_broke_after_the_table_of_the_rest(tmp_path):
    result = invoke("run", quick_file(tmp_path), BROKEN, "--jobs", "1")
    assert result.exit_code == 3, result.stderr
    assert "point=bad" in result.stderr
    assert "the loss is" in result.stderr
    assert "Traceback" not in result.stderr
    assert (tmp_path / "quick" / "table.md").is_file()


# Estimates -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cores", "jobs"), [(1, 1), (2, 2), (8, 3)])
def test_there_are_no_more_processes_than_cores_or_points(tmp_path, monkeypatch, cores, jobs):
    monkeypatch.setattr(estimation, "cores", lambda: cores)
    assert best_jobs(quick(tmp_path, RULES, "infrastructure.threads=1").points) == jobs


@pytest.mark.parametrize(("gain", "jobs"), [(1.1, 8), (1.9, 8), (2.5, 1)])
def test_processes_get_the_threads_with_which_all_together_are_fastest(gain, jobs, tmp_path, monkeypatch):
    monkeypatch.setattr(estimation, "cores", lambda: 8)
    before, batch = torch.get_num_threads(), 40

    def seconds(network, images, precision):
        assert images.shape == (batch, 3, 32, 32)
        return gain ** -math.log2(torch.get_num_threads())  # twice the threads, `gain` times the speed

    monkeypatch.setattr(estimation, "_step_seconds", seconds)
    sweep = (
        "infrastructure.threads=null",
        "model.architecture=le_net_cifar",
        f"training.hyperparameters.batch_size={batch}",
        "sweep={experiment.seed: [0, 1, 2, 3, 4, 5, 6, 7, 8]}",
    )
    assert best_jobs(quick(tmp_path, *sweep).points) == jobs
    assert torch.get_num_threads() == before
    assert best_jobs(quick(tmp_path, *sweep, "infrastructure.threads=2").points) == 4


def test_a_network_that_takes_no_images_gets_one_thread(tmp_path, monkeypatch):
    monkeypatch.setattr(estimation, "cores", lambda: 8)
    study = quick(tmp_path, "infrastructure.threads=null", "model.architecture=char_transformer")
    assert estimation._best_threads(study.points[""]) == 1


def test_an_estimate_is_of_the_whole_run_and_leaves_nothing_on_disk(tmp_path):
    short = dict(estimates(quick(tmp_path, RULES).points))
    long = dict(estimates(quick(tmp_path, RULES, "training.hyperparameters.epochs=1000").points))
    assert list(short) == ["rule=fa", "rule=dfa", "rule=usf"]
    assert all(each.update > 0 and each.seconds > each.before for each in short.values())
    ratio = (long["rule=fa"].seconds - long["rule=fa"].before) / (short["rule=fa"].seconds - short["rule=fa"].before)
    assert 200 < ratio < 5000  # a thousand times the epochs, on a noisy machine
    assert not (tmp_path / "quick").exists()


def test_a_dry_run_lists_the_points_and_writes_nothing(tmp_path):
    result = invoke("run", quick_file(tmp_path), RULES, "--dry-run")
    assert result.exit_code == 0, result.stderr
    for rule in ("fa", "dfa", "usf"):
        assert f"rule={rule}" in result.stdout
    assert "3 of 3 points to run" in result.stdout
    assert not (tmp_path / "quick").exists()


# Helpers ---------------------------------------------------------------------------------------------


def _start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "biotorch.cli", "run", str(quick_file(folder)), *arguments]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _wait_for(path: Path, lines: int = 1, process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        if path.is_file() and len(path.read_text().splitlines()) >= lines:
            return
        if process is not None and process.poll() is not None:
            pytest.fail(f"the command ended with {process.returncode}: {process.communicate()}")
        time.sleep(0.02)
    pytest.fail(f"{path} has not come")
