"""What is tracked per epoch, for every rule, in metrics.jsonl, TensorBoard and Weights & Biases."""

import json
import math
import sys
import types
from pathlib import Path

import pytest
import runs
from rule_names import LAYERWISE, RULES, TRAINING, without_decay

import biotorch
from biotorch.experiment import run
from biotorch.experiment.measure import evaluate_run

LAYERS = ["features.0", "features.3", "features.6", "classifier.1", "classifier.3"]
OPTIONS = {"weight_alignment": "angles", "weight_ratio": "norm_ratios", "gradient_alignment": "gradient_angles"}


@without_decay
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_tracked_in_metrics_and_tensorboard(rule, tmp_path):
    overrides = (*runs.ALL_METRICS, f"model.mode.type={rule}", "training.hyperparameters.epochs=2")
    result = runs.finish(tmp_path, *overrides, "training.lr_scheduler={type: StepLR, step_size: 1}")
    folder = tmp_path / "quick"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines == result["history"]
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    figures = {"loss", "error", "top_3_error"}
    for line in lines:
        assert line["validation"].keys() == figures
        assert line["gradient_angles"].keys() == set(LAYERS if rule in TRAINING else LAYERS[-1:])
        assert line["norm_ratios"].keys() == set(LAYERS if rule in TRAINING else [])
        assert line["angles"].keys() == (set(LAYERS) if rule in LAYERWISE and rule in TRAINING else set())
        if rule == "backpropagation":
            assert max(line["angles"].values()) == max(line["gradient_angles"].values()) == 0
        if line["epoch"]:
            assert line["train"].keys() == figures
            assert line["seconds"] > 0
            assert line["examples_per_second"] == pytest.approx(result["data"]["train"] / line["seconds"])
    assert [line["learning_rate"] for line in lines] == pytest.approx([0.01, 0.01, 0.001])

    expected = {}
    for line in lines:
        for group in ("angles", "norm_ratios", "gradient_angles"):
            for layer, value in line[group].items():
                expected.setdefault(f"{group}/{layer}", []).append((line["epoch"], value))
        for split in ("train", "validation"):
            for name, value in line.get(split, {}).items():
                expected.setdefault(f"{name}/{split}", []).append((line["epoch"], value))
    shown = runs.curves(folder, times=True)
    times = {"training/seconds", "training/examples_per_second", "training/learning_rate"}
    assert shown.keys() == expected.keys() | times
    for tag, points in expected.items():
        assert [step for step, _ in shown[tag]] == [step for step, _ in points]
        assert [value for _, value in shown[tag]] == pytest.approx(
            [math.nan if value is None else value for _, value in points], nan_ok=True
        )
    assert len(list((folder / "logs").iterdir())) == 1
    assert all(path.is_file() for path in (folder / "logs").iterdir())


@pytest.mark.parametrize("option", OPTIONS)
def test_only_what_is_asked_for_is_tracked(option, tmp_path):
    result = runs.finish(tmp_path, f"training.metrics={{{option}: true}}", "data.validation_size=1200")
    for record in result["history"]:
        assert OPTIONS[option] in record
        assert not set(OPTIONS.values()) - {OPTIONS[option]} & record.keys()
        assert record["validation"].keys() == {"loss", "error"}
    assert not any("top" in key for key in result["test"])


def test_tracking_changes_nothing_of_the_training(tmp_path, monkeypatch):
    monkeypatch.setitem(runs.models.registry.OWN, "small", runs.small)
    tracked = runs.finish(tmp_path / "tracked", *runs.EVERYTHING_MATTERS)
    off = ("training.metrics={}", "logging.tensorboard=false")
    untracked = runs.finish(tmp_path / "untracked", *runs.EVERYTHING_MATTERS, *off)
    assert tracked["state_hash"] == untracked["state_hash"]
    assert not (tmp_path / "untracked" / "quick" / "logs").exists()


def test_tracked_angles_are_those_of_the_loaded_network(tmp_path):
    result = runs.finish(tmp_path, *runs.ALL_METRICS, "model.mode.type=usf")
    model = biotorch.load(tmp_path / "quick", "latest")
    assert biotorch.metrics.alignment_angles(model) == pytest.approx(result["history"][-1]["angles"], rel=1e-6)
    assert biotorch.metrics.norm_ratios(model) == pytest.approx(result["history"][-1]["norm_ratios"], rel=1e-6)


def test_the_training_error_is_over_all_examples_of_the_epoch(tmp_path):
    """With a rate of next to nothing the network stays as it is: train and validation on the same examples agree."""
    size = "data.validation_size=1"
    result = runs.finish(tmp_path, "training.optimizer={type: SGD, lr: 1e-30}", size, "training.metrics.top_k=2")
    again = evaluate_run(tmp_path / "quick", "test")
    assert again["error"] == pytest.approx(result["test"]["error"])
    splits = biotorch.data.load(biotorch.data.DataConfig(dataset="digits", target_size=32, validation_size=1), 3)
    loss = biotorch.training.LossConfig().build()
    expected = biotorch.training.evaluate(biotorch.load(tmp_path / "quick"), splits.train, loss, 2)
    assert result["history"][1]["train"] == pytest.approx(expected, rel=1e-5)


# Weights & Biases --------------------------------------------------------------------------------


class FakeRun:
    def __init__(self, **options):
        self.options, self.logged, self.finished = options, [], 0
        root = Path(options["dir"])  # W&B writes into `wandb`, or into `.wandb` if that is there
        (root / (".wandb" if (root / ".wandb").exists() else "wandb") / f"run-1-{options['id']}").mkdir(
            parents=True, exist_ok=True
        )

    def log(self, values, step=None):
        self.logged.append((step, values))

    def finish(self, *args, **kwargs):
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch):
    opened = []
    module = types.ModuleType("wandb")
    module.init = lambda **options: opened.append(FakeRun(**options)) or opened[-1]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return opened


def test_weights_and_biases_gets_what_metrics_has(wandb, tmp_path):
    result = runs.finish(tmp_path, *runs.ALL_METRICS, "logging.wandb=my project")
    (opened,) = wandb
    assert opened.options["project"] == "my project"
    assert opened.options["config"] == result["config"]
    assert [step for step, _ in opened.logged] == [0, 1]
    assert opened.logged[1][1]["error/validation"] == result["history"][1]["validation"]["error"]
    assert opened.logged[1][1]["gradient_angles/features.0"] == result["history"][1]["gradient_angles"]["features.0"]
    assert opened.finished == 1
    assert (tmp_path / "quick" / "logs").is_dir()


def test_weights_and_biases_is_off_by_default(wandb, tmp_path):
    runs.finish(tmp_path, "data.validation_size=1200")
    assert wandb == []


def test_a_resumed_run_is_the_same_run_of_weights_and_biases(wandb, tmp_path):
    class Stop(biotorch.experiment.Display):
        def epoch(self, record):
            if record["epoch"] == 2:
                raise ZeroDivisionError

    overrides = ["logging.wandb=p", "training.hyperparameters.epochs=3", "infrastructure.checkpoint_seconds=0"]
    with pytest.raises(ZeroDivisionError):
        run(runs.quick(tmp_path, *overrides), display=Stop())
    runs.finish(tmp_path, *overrides)
    first, second = wandb
    assert first.finished == second.finished == 1
    assert first.options["id"] == second.options["id"]
    steps = [step for opened in wandb for step, _ in opened.logged]
    assert sorted(set(steps)) == [0, 1, 2, 3]


def test_without_weights_and_biases_the_error_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'biotorch-feedback\[wandb\]'"):
        runs.finish(tmp_path, "logging.wandb=p")
    assert runs.finish(tmp_path)["test"]  # the mended configuration is another log of the same run


def test_an_undefined_figure_is_null_in_json_and_nan_in_tensorboard(tmp_path):
    """frsf's gradient of a layer whose output is constant is zero: there is no angle."""
    result = runs.finish(
        tmp_path,
        *runs.ALL_METRICS,
        "model.loss_function={name: multi_margin_loss, margin: 1e-30}",
        "model.mode.type=fa",
    )
    text = (tmp_path / "quick" / "metrics.jsonl").read_text()
    assert "NaN" not in text
    undefined = {name for name, value in result["history"][0]["gradient_angles"].items() if value is None}
    shown = runs.curves(tmp_path / "quick")
    assert all(math.isnan(shown[f"gradient_angles/{name}"][0][1]) for name in undefined)
