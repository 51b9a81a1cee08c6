"""A run that is killed, interrupted or terminated continues, and ends as if nothing had happened."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import runs
import torch
from dying import start
from networks import RULES
from rule_names import without_decay

from biotorch.experiment import Display, Interrupted, run

BIOTORCH = [sys.executable, "-m", "biotorch.cli"]


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setitem(runs.models.registry.OWN, "small", runs.small)


def require_the_same(folder: Path, reference: Path) -> None:
    mine, theirs = (runs.left_behind(path / "quick") for path in (folder, reference))
    for key in theirs:
        assert mine[key] == theirs[key], key


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    runs.register_small()
    folder = tmp_path_factory.mktemp("uninterrupted")
    runs.finish(folder, *runs.EVERYTHING_MATTERS)
    del runs.models.registry.OWN["small"]
    return folder


@pytest.mark.parametrize("seconds", [pytest.param(0, marks=pytest.mark.slow), 0.05])
def test_a_run_killed_at_random_moments_ends_as_if_it_had_not_been(seconds, uninterrupted, tmp_path):
    overrides = (*runs.EVERYTHING_MATTERS, f"infrastructure.checkpoint_seconds={seconds}")
    moments, kills, longest, folders = random.Random(int(1000 * seconds)), 0, 1.0, itertools.count()
    while kills < 20:
        folder = tmp_path / f"attempt {next(folders)}"
        while not (folder / "quick" / "results.json").exists():
            process = start(folder, overrides)
            process.join(moments.uniform(0, longest))
            process.kill()
            process.join()
            assert process.exitcode in (0, -signal.SIGKILL)
            killed = process.exitcode != 0
            kills += killed
            longest *= 1.1 if killed else 0.7  # whatever a run takes on this machine at this moment
        require_the_same(folder, uninterrupted)


def test_a_killed_run_leaves_no_unfinished_files_behind(tmp_path):
    for step in (5, 9, 13, None):
        start(tmp_path, runs.EVERYTHING_MATTERS, step).join()
    assert runs.stray(tmp_path / "quick") == set()


# The command -------------------------------------------------------------------------------------

LONG = ("training.hyperparameters={epochs: 12, batch_size: 16}", *runs.ALL_METRICS, "model.mode.type=brsf")


def command(folder: Path) -> subprocess.Popen:
    arguments = ["run", str(runs.quick_file(folder)), *LONG]
    return subprocess.Popen([*BIOTORCH, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    runs.finish(folder, *LONG)
    return folder


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow),
    ],
)
def test_the_same_command_continues_what_a_signal_stopped(number, code, long_run, tmp_path):
    process = command(tmp_path)
    metrics = tmp_path / "quick" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)  # far less than the rest of the run takes
    assert process.returncode == code, output
    assert "Traceback" not in output
    state = torch.load(tmp_path / "quick" / "latest_model.pth", weights_only=True)
    assert not (tmp_path / "quick" / "results.json").exists()
    if number is not signal.SIGKILL:
        assert state["epoch"] >= 3
        assert signal.Signals(number).name in output
    if number is signal.SIGKILL:
        again = command(tmp_path)
        output, _ = again.communicate(timeout=60)
        assert again.returncode == 0, output
    else:  # the same in this process, which has everything loaded
        runs.finish(tmp_path, *LONG)
    require_the_same(tmp_path, long_run)


@without_decay
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("precision", ["32", pytest.param("bf16-mixed", marks=pytest.mark.slow)])
def test_every_rule_continues_to_the_bit(rule, precision, tmp_path):
    class Stop(Display):
        def update(self, trainer):
            if (trainer.epoch, trainer.step) in ((1, 2), (2, 3)):
                os.kill(os.getpid(), signal.SIGTERM)

    mode = f"model.mode={{type: {rule}, options: {{constrain_weights: true, gradient_clip: true}}}}"
    short = ("training.hyperparameters={epochs: 2, batch_size: 50, accumulate: 2}", "data.validation_size=1000")
    overrides = (*runs.EVERYTHING_MATTERS, *short, mode, f"infrastructure.precision={precision}")
    for _ in range(2):
        with pytest.raises(Interrupted):
            run(runs.quick(tmp_path, *overrides), display=Stop())
    runs.finish(tmp_path, *overrides)
    runs.finish(tmp_path / "whole", *overrides)
    require_the_same(tmp_path, tmp_path / "whole")


def test_a_stopped_sweep_keeps_what_is_finished_and_continues_with_the_rest(tmp_path):
    sweep = "sweep={experiment.seed: [0, 1, 2]}"

    class Stop(Display):
        def epoch(self, record):
            if self.name == "seed=1" and record["epoch"] == 1:
                os.kill(os.getpid(), signal.SIGTERM)

        def start(self, name, config):
            self.name = name
            started.append(name)

    started = []
    with pytest.raises(Interrupted) as caught:
        run(runs.quick(tmp_path, sweep), display=Stop())
    assert caught.value.number == signal.SIGTERM
    assert started == ["seed=0", "seed=1"]
    results = [tmp_path / "quick" / f"seed={seed}" / "results.json" for seed in range(3)]
    assert [path.exists() for path in results] == [True, False, False]
    started.clear()
    again = run(runs.quick(tmp_path, sweep), display=Display())
    whole = run(runs.quick(tmp_path / "whole", sweep))
    assert {name: result["state_hash"] for name, result in again.items()} == {
        name: result["state_hash"] for name, result in whole.items()
    }
