"""Two processes give what one gives; their feedback stays equal; what stops one stops both."""

import json
import math
import shutil
import signal
import time
from pathlib import Path

import pytest
import runs
import torch
from networks import RULES
from places import HELPERS
from torchrun import finish, start

import biotorch
from biotorch.errors import kind_of
from biotorch.experiment import RunFolder, read, run

CASES = """
  plain: {}
  clipped: {model.mode.options.gradient_clip: true, training.hyperparameters.accumulate: 3}
  uneven: {training.hyperparameters.batch_size: 37, training.clip_gradient_norm: 0.5, model.loss_function.name: mse}
"""


def require_close(mine: Path, alone: Path) -> None:
    first, second = (json.loads((path / "results.json").read_text()) for path in (mine, alone))
    assert (first["environment"]["processes"], second["environment"]["processes"]) == (2, 1)
    examples = first["data"]
    for one, other in zip(first["history"], second["history"], strict=True):
        assert one["epoch"] == other["epoch"]
        for split in one.keys() & {"train", "validation"}:
            assert one[split]["loss"] == pytest.approx(other[split]["loss"], rel=1e-4)
            for name in one[split].keys() - {"loss"}:  # one example may fall to either side
                assert one[split][name] == pytest.approx(other[split][name], abs=100.01 / examples[split])
        assert one["learning_rate"] == other["learning_rate"]
        for group in ("angles", "norm_ratios"):
            assert one[group] == pytest.approx(other[group], rel=1e-3, abs=0.05)
    for name, value in runs.weights(mine / "latest_model.pth").items():
        torch.testing.assert_close(value, runs.weights(alone / "latest_model.pth")[name], rtol=1e-3, atol=1e-4)


def sweep_file(folder: Path, rules) -> Path:
    """Every rule in every case; 257 training images, of which the last batch of 64 has one and that of 37 has 35."""
    path = runs.quick_file(folder)
    text = path.read_text() + f"sweep:\n  model.mode.type: [{', '.join(rules)}]\n  case:"
    path.write_text(text + CASES.replace("\n", "\n  "))
    return path


def compare(folder: Path, rules, epochs: int) -> None:
    overrides = ("data.validation_size=1180", *runs.ALL_METRICS, f"training.hyperparameters.epochs={epochs}")
    process = start("-m", "biotorch.cli", "run", sweep_file(folder / "two", rules), *overrides)
    alone = run(read(sweep_file(folder / "alone", rules), overrides))
    output = finish(process)
    assert process.returncode == 0, output
    assert len(alone) == 3 * len(rules)
    assert output.count("test error") == len(alone) + 1  # one line per point and the table's head
    for name in alone:
        require_close(folder / "two" / "quick" / name, folder / "alone" / "quick" / name)


def test_two_processes_train_like_one(tmp_path):
    compare(tmp_path, ["brsf", "dfa"], epochs=1)


@pytest.mark.slow
def test_two_processes_train_like_one_under_every_rule(tmp_path):
    compare(tmp_path, RULES, epochs=2)


# Both processes, seen from inside ----------------------------------------------------------------


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    process = start(HELPERS / "distributed_worker.py", folder)
    output = finish(process)
    assert process.returncode == 0, output
    return folder, [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_feedback_and_weights_of_both_are_equal_to_the_bit_with_batch_statistics_and_dropout(rule, seen):
    _, (first, second) = seen
    assert first[rule] == second[rule]
    _, feedback, weights = first[rule]
    assert len(weights) == len(set(weights)) == 21
    kind = biotorch.rules.get(rule)
    assert len(set(feedback)) == (21 if kind.learns or kind.has_update() else 1)


@pytest.mark.slow
@pytest.mark.parametrize("who", ["both", "one"])
def test_where_a_signal_stops_both_or_one_of_them_both_stop_and_continue_to_the_bit(who, seen):
    folder, ranks = seen
    for rank in ranks:
        assert rank[f"{who} stopped"] == "Interrupted: SIGTERM"
        assert rank[f"{who} continued"] == rank["brsf"][0]
    assert runs.left_behind(folder / who / "quick") == runs.left_behind(folder / "brsf" / "quick")


@pytest.mark.slow
def test_a_mistake_is_told_in_both_processes(seen):
    for rank in seen[1]:
        assert rank["other"].startswith("OtherRunError")
        assert rank["diverged"].startswith("DivergenceError")
        assert rank["too small"].startswith("ConfigError")


@pytest.mark.slow
def test_what_two_began_one_may_not_continue_and_is_told(seen, monkeypatch, tmp_path):
    folder, _ = seen
    monkeypatch.setitem(runs.models.registry.OWN, "small", runs.small)
    begun = tmp_path / "quick"
    shutil.copytree(folder / "both" / "quick", begun)
    for name in ("results.json", "results.csv"):
        (begun / name).unlink()
    overrides = [*runs.EVERYTHING_MATTERS, "training.hyperparameters={epochs: 3, batch_size: 100, accumulate: 2}"]
    with pytest.raises(Exception, match=r"written by 2 process.* has 1") as caught:
        run(runs.quick(tmp_path, *overrides))
    assert kind_of(caught.value) == "mistake"  # else the command shows a traceback


# The command -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_terminated_command_continues_and_a_locked_folder_ends_both_with_one_message(tmp_path):
    arguments = ("-m", "biotorch.cli", "run", runs.quick_file(tmp_path / "two"))
    overrides = ("training.hyperparameters={epochs: 6, batch_size: 32}", "model.mode.type=brsf")
    folder = RunFolder(tmp_path / "two" / "quick")
    folder.lock()
    begin = time.monotonic()
    process = start(*arguments, *overrides)
    output = finish(process, 40)
    assert process.returncode != 0
    assert output.count("another process is working on") == 1, output
    assert "biotorch/experiment" not in output  # no traceback of ours
    folder.release()
    assert time.monotonic() - begin < 40

    process = start(*arguments, *overrides)
    metrics = folder.metrics
    while not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output = finish(process, 20)
    assert output.count("stopped by SIGTERM") == 1, output
    assert torch.load(folder.latest, weights_only=True)["epoch"] >= 2
    assert not folder.results.exists()

    process = start(*arguments, *overrides)
    whole = start("-m", "biotorch.cli", "run", runs.quick_file(tmp_path / "whole"), *overrides)
    for each in (process, whole):
        output = finish(each)
        assert each.returncode == 0, output
    assert runs.left_behind(folder.path) == runs.left_behind(tmp_path / "whole" / "quick")
    assert math.isfinite(json.loads(folder.results.read_text())["test"]["loss"])
