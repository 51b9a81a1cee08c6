"""What a run writes, that it repeats to the bit, and that it leaves its caller alone."""

import csv
import functools
import json
import random
import signal
import sys

import numpy as np
import pytest
import runs
import torch
import yaml
from networks import RULES
from rule_names import without_decay
from torch._dynamo.utils import counters

import biotorch
from biotorch import data
from biotorch.experiment import ConfigError, Display, load_results, read, run
from biotorch.training import evaluate


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    runs.finish(folder, *runs.ALL_METRICS)
    return folder / "quick"


@pytest.fixture(scope="module")
def result(finished):
    return json.loads((finished / "results.json").read_text())


# Files -------------------------------------------------------------------------------------------


def test_a_run_writes_exactly_its_files(finished, result):
    names = {path.name for path in finished.iterdir()} - {".lock"}
    files = {"config.yaml", "results.json", "results.csv", "metrics.jsonl", "best_acc.txt"}
    assert names == files | {"logs", "model_best_acc.pth", "latest_model.pth"}
    assert load_results(finished) == result
    assert yaml.safe_load((finished / "config.yaml").read_text()) == result["config"]
    assert float((finished / "best_acc.txt").read_text()) == 100 - result["validation"]["error"]
    assert [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()] == result["history"]


def test_results_are_plain_and_say_what_they_depend_on(finished, result):
    text = (finished / "results.json").read_text()
    assert "tensor(" not in text
    assert "NaN" not in text
    assert {"loss", "error", "top_3_error"} == set(result["test"]) == set(result["validation"])
    assert result["test"]["top_3_error"] <= result["test"]["error"] <= 100
    assert {"biotorch", "torch", "python", "commit", "device", "threads", "processes"} <= set(result["environment"])
    assert result["config"]["infrastructure"]["threads"] == result["environment"]["threads"] == 1
    assert result["data"]["validation_from"] == "training set"
    assert result["data"]["split_seed"] == 3
    assert result["seconds"] > 0


def test_the_table_of_results_is_plain_numbers(finished, result):
    with (finished / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["split"] for row in rows] == ["validation", "test"]
    for row in rows:
        figures = result[row["split"]]
        for key in ("accuracy", "error", "loss", "top_3_error", "seconds"):
            assert float(row[key]) == {**figures, "accuracy": 100 - figures["error"], **result}[key]
        assert (row["rule"], row["dataset"], row["seed"]) == ("fa", "digits", "3")
        assert row["state_hash"] == result["state_hash"]
        assert row["torch"] == torch.__version__
        assert row["device"] == "cpu"
        assert row["commit"]


def test_the_hash_is_that_of_the_last_state(finished, result):
    state = biotorch.load(finished, "latest").state_dict()
    assert biotorch.training.distributed.state_hash(state) == result["state_hash"]
    for name in state:
        bent = {**state, name: state[name] + 1}
        assert biotorch.training.distributed.state_hash(bent) != result["state_hash"]


def test_validation_on_the_test_set_is_said(tmp_path):
    result = runs.finish(tmp_path, "data.validation=test")
    assert result["data"]["validation_from"] == "test set"
    assert result["data"]["held_out"] is None
    assert result["validation"] == result["test"]


def test_without_evaluation_there_are_no_figures_of_the_test_set(tmp_path):
    result = runs.finish(tmp_path, "evaluation=false")
    assert result["test"] is None
    assert len((tmp_path / "quick" / "results.csv").read_text().splitlines()) == 2


def test_a_compiled_run_takes_no_graphs_of_an_earlier_one(tmp_path, monkeypatch):
    """The pieces of a direct network, whose layers break the graph, fit any network of the same classes."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    options = ("infrastructure.compile=true", "model.architecture=mlp", "data.validation_size=1300")
    counts = []
    for place, rule in enumerate(("fa", "dfa", "fa")):
        counters.clear()
        runs.finish(tmp_path / str(place), f"model.mode.type={rule}", *options)
        counts.append(counters["stats"]["unique_graphs"])
    assert counts[0] == counts[2] > 0
    assert counts[1] > 0


def test_the_test_set_is_seen_once_and_by_the_best_model(tmp_path, monkeypatch):
    """At a rate that spoils what was learnt, the last model is not the best."""
    seen = []

    def counted(model, split, *args, **kwargs):
        seen.append(len(split))
        return evaluate(model, split, *args, **kwargs)

    for module in ("biotorch.experiment.point", "biotorch.training.loop"):
        monkeypatch.setattr(sys.modules[module], "evaluate", counted)
    spoils = "training.lr_scheduler={type: StepLR, step_size: 2, gamma: 100}"
    overrides = ["training.hyperparameters.epochs=3", "training.optimizer={type: Adam, lr: 0.002}", spoils]
    result = runs.finish(tmp_path, *overrides, "data.validation_size=200")
    test = result["data"]["test"]
    assert seen.count(test) == 1
    assert seen[-1] == test
    assert result["best_epoch"] == 2
    splits = data.load(data.DataConfig(dataset="digits", target_size=32, validation_size=200), 3)
    for which, same in (("best", True), ("latest", False)):
        model = biotorch.load(tmp_path / "quick", which)
        error = evaluate(model, splits.test, torch.nn.functional.cross_entropy)["error"]
        assert (error == result["test"]["error"]) is same
    errors = [record["validation"]["error"] for record in result["history"][1:]]
    assert result["validation"]["error"] == min(errors) < errors[-1]


# Repeatable --------------------------------------------------------------------------------------


@without_decay
@pytest.mark.parametrize("precision", ["32", pytest.param("bf16-mixed", marks=pytest.mark.slow)])
@pytest.mark.parametrize("rule", RULES)
def test_a_run_repeats_to_the_bit_and_another_seed_differs(rule, precision, tmp_path):
    overrides = [f"model.mode.type={rule}", f"infrastructure.precision={precision}", "data.validation_size=1100"]
    first, second = (runs.finish(tmp_path / name, *overrides) for name in ("first", "second"))
    other = runs.finish(tmp_path / "other", *overrides, "experiment.seed=4")
    assert first["state_hash"] == second["state_hash"] != other["state_hash"]
    assert [runs.timeless(record) for record in first["history"]] == [
        runs.timeless(record) for record in second["history"]
    ]
    assert first["test"] == second["test"]
    assert first["data"] == second["data"]
    assert first["data"]["held_out"] != other["data"]["held_out"]


def test_what_matters_repeats_with_everything_on(tmp_path, monkeypatch):
    monkeypatch.setitem(runs.models.registry.OWN, "small", runs.small)
    for name in ("first", "second"):
        torch.manual_seed(len(name))  # what the caller has drawn before makes no difference
        runs.finish(tmp_path / name, *runs.EVERYTHING_MATTERS)
    assert runs.left_behind(tmp_path / "first" / "quick") == runs.left_behind(tmp_path / "second" / "quick")


def test_bfloat16_is_used(tmp_path):
    half = runs.finish(tmp_path / "half", "infrastructure.precision=bf16-mixed")
    whole = runs.finish(tmp_path / "whole")
    assert half["state_hash"] != whole["state_hash"]
    assert half["test"]["error"] == pytest.approx(whole["test"]["error"], abs=15)


@pytest.mark.parametrize("name", ["again", "1e3", "12e5", "true", "null", "2020-01-01", "0x1f", "1_000", "a: b", "ä"])
def test_the_resolved_configuration_repeats_the_run(name, finished, result, tmp_path):
    resolved = finished / "config.yaml"
    quoted = f'experiment.name="{name}"'
    study = read(resolved, [quoted, f"experiment.output_dir={tmp_path}", "data.validation_size=1100"])
    first = run(study)[""]
    again = read(tmp_path / name / "config.yaml", [f"experiment.output_dir={tmp_path / 'again'}"])
    assert run(again)[""]["state_hash"] == first["state_hash"]


def test_the_resolved_configuration_of_a_run_gives_its_hash(finished, result, tmp_path):
    again = run(read(finished / "config.yaml", [f"experiment.output_dir={tmp_path}"]))[""]
    assert again["state_hash"] == result["state_hash"]
    assert again["config"]["experiment"] == {**result["config"]["experiment"], "output_dir": str(tmp_path)}


def test_threads_are_those_of_the_machine_and_recorded(tmp_path):
    assert torch.get_num_threads() == 1
    study = runs.quick(tmp_path, "infrastructure.threads=null", "data.validation_size=1200")
    result = run(study)[""]
    assert result["config"]["infrastructure"]["threads"] == result["environment"]["threads"] == 1
    written = read(tmp_path / "quick" / "config.yaml").config
    assert written.infrastructure.threads == 1


@without_decay
def test_every_rule_starts_from_the_same_weights_and_sees_the_same_split(tmp_path):
    rules = ", ".join(RULES)
    finished = run(runs.quick(tmp_path, f"sweep={{model.mode.type: [{rules}]}}", "data.validation_size=1100"))
    assert len(finished) == len(RULES)
    assert len({result["history"][0]["validation"]["loss"] for result in finished.values()}) == 1
    assert len({result["data"]["held_out"] for result in finished.values()}) == 1
    assert len({result["state_hash"] for result in finished.values()}) == len(RULES)


# The caller --------------------------------------------------------------------------------------


def surroundings():
    return {
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": repr(np.random.get_state()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "fill": torch.utils.deterministic.fill_uninitialized_memory,
        "threads": torch.get_num_threads(),
        "handlers": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
    }


class _Fails(Display):
    def epoch(self, record):
        if record["epoch"] == 1:
            random.random()
            raise ZeroDivisionError


@pytest.mark.parametrize("warn_only", [None, False, True])
@pytest.mark.parametrize("display", [Display(), _Fails()])
def test_random_state_and_settings_of_the_caller_are_put_back(display, warn_only, tmp_path):
    torch.use_deterministic_algorithms(warn_only is not None, warn_only=bool(warn_only))
    try:
        before = surroundings()
        try:
            run(runs.quick(tmp_path, "infrastructure.threads=2", "data.validation_size=1200"), display=display)
        except ZeroDivisionError:
            assert isinstance(display, _Fails)
        assert surroundings() == before
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_run_is_deterministic_inside(tmp_path):
    seen = []

    class Look(Display):
        def update(self, trainer):
            seen.append((torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()))

    run(runs.quick(tmp_path, "data.validation_size=1300"), display=Look())
    assert set(seen) == {(True, 1)}
    seen.clear()
    run(runs.quick(tmp_path, "data.validation_size=1300", "experiment.deterministic=false"), True, Look())
    assert set(seen) == {(False, 1)}


def test_a_network_that_does_not_fit_the_images_is_told_before_training(tmp_path):
    with pytest.raises(ConfigError, match=r"resnet20.*digits.*1x32x32"):
        run(runs.quick(tmp_path, "model.architecture=resnet20"))


def test_after_a_mistake_the_mended_configuration_runs(tmp_path):
    with pytest.raises(ConfigError):
        run(runs.quick(tmp_path, "model.architecture=resnet20"))
    assert runs.finish(tmp_path, "data.validation_size=1200")["test"]


@pytest.mark.parametrize("seed", [2**32, 2**63 - 1, 2**64, 2**70])
def test_any_seed_works_or_is_told(seed, tmp_path):
    try:
        study = runs.quick(tmp_path, f"experiment.seed={seed}", "data.validation_size=1300")
    except ConfigError:
        return
    assert run(study)[""]["data"]["split_seed"] == seed
