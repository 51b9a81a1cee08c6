"""Runs on tables and float features: a rule end to end, evaluating on other rows, auditing, and what is refused."""

import gzip
import re
from importlib import resources

import numpy as np
import pytest
import runs
from commands import into, invoke, mistake

from biotorch.errors import DataError
from biotorch.experiment import ConfigError
from biotorch.experiment.measure import attack_run, evaluate_run

WINE = (
    "data={dataset: wine}",
    "model.architecture=mlp",
    "model.arguments={width: 32, depth: 2}",
    "training.hyperparameters={epochs: 20, batch_size: 16}",
    "training.optimizer={type: Adam, lr: 0.01}",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wine")
    return runs.finish(folder, *WINE), folder / "quick"


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    draw, path = np.random.default_rng(0), tmp_path_factory.mktemp("features") / "set.npz"
    arrays = {f"x_{part}": draw.normal(size=(n, 4)) for part, n in (("train", 40), ("test", 10))}
    np.savez(path, **arrays, y_train=np.arange(40) % 2, y_test=np.arange(10) % 2)
    return path


def test_feedback_alignment_learns_a_table(finished):
    result, folder = finished
    assert result["test"]["error"] < 20  # 60 % without learning
    assert result["data"]["class_names"] == ["class_0", "class_1", "class_2"]
    again = evaluate_run(folder)
    assert (again["examples"], again["error"]) == (36, result["test"]["error"])


def test_other_rows_are_measured_with_the_preparation_of_the_training(finished, tmp_path):
    _, folder = finished
    rows = gzip.decompress((resources.files("biotorch.data") / "wine.csv.gz").read_bytes()).decode().splitlines()
    (tmp_path / "whole.csv").write_text("\n".join(rows))
    (tmp_path / "part.csv").write_text("\n".join([rows[0], *rows[100:140]]))
    changed = ("data.test", str(tmp_path / "part.csv"))
    with pytest.raises(ConfigError, match=r"inputs that were made in another way.*give only them, as data\.test"):
        evaluate_run(folder, overrides=[changed])  # all of wine is then for training, with other means
    for override in (("data.standardise", False), ("data.ignore", ["hue"]), ("data.validation_size", 5)):
        with pytest.raises(ConfigError, match="inputs that were made in another way"):
            evaluate_run(folder, overrides=[override])
    settings = (
        f"data={{dataset: 'table:{tmp_path / 'whole.csv'}', target: cultivar, test: '{tmp_path / 'part.csv'}'}}",
    )
    result = runs.finish(tmp_path / "own", *settings, *WINE[1:])
    assert (result["data"]["train"], result["data"]["validation"], result["data"]["test"]) == (160, 18, 40)
    (tmp_path / "few.csv").write_text("\n".join([rows[0], *rows[1:11]]))
    other = evaluate_run(tmp_path / "own" / "quick", overrides=[("data.test", str(tmp_path / "few.csv"))])
    assert other["examples"] == 10
    assert other["error"] == 0  # they are among the rows that it was trained on


def test_the_audit_takes_a_table(tmp_path):
    result = invoke("audit", runs.quick_file(tmp_path), *WINE)
    assert result.exit_code == 0, result.output
    assert "all 3 layers transport nothing" in result.stdout


def test_attacks_need_images(finished):
    with pytest.raises(ConfigError, match="was not trained on images with classes, which attacks need"):
        attack_run(finished[1])


@pytest.mark.parametrize("per_step", [False, True])
def test_outputs_per_step_need_labels_per_step(per_step, tmp_path):
    draw, path = np.random.default_rng(0), tmp_path / "set.npz"
    x, y = draw.normal(size=(20, 5, 3)), draw.integers(2, size=(20, 5) if per_step else 20)
    np.savez(path, x_train=x, x_test=x, y_train=y, y_test=y)
    model = f"model={{architecture: gru, arguments: {{per_step: {str(not per_step).lower()}}}}}"
    said = mistake(
        invoke("run", runs.quick_file(tmp_path), f"data={{dataset: {path}}}", *into(tmp_path), model, *WINE[3:])
    )
    assert (
        f"one label per {'step' if per_step else 'example'}: set model.arguments.per_step: {str(per_step).lower()}"
        in said
    )


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["training.metrics.top_k=1000"], "1000 of 3 outputs"),
        (["data.target=nix"], "'nix'"),
        (["data.dataset=diabetes", "model.loss_function={name: cross_entropy}"], "model.loss_function"),
    ],
)
def test_what_does_not_fit_the_data_is_told_once_before_the_first_point(overrides, told, tmp_path):
    sweep = "sweep={model.mode.type: [fa, dfa], experiment.seed: [0, 1]}"
    with pytest.raises((ConfigError, DataError), match=told):
        runs.finish(tmp_path, *WINE, *overrides, sweep)
    assert not list(tmp_path.rglob("rule=*"))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["data.augment=true"], r"data\.augment: a setting of images, but wine is a table"),
        (["data.dataset={npz}", "attacks.preset=quick"], r"^.*attacks: a setting of images, but .* has float features"),
        (
            ["data.dataset={npz}", "training.adversarial.epsilon=0.1"],
            r"adversarial: .* has float features: leave it out",
        ),
        (["model.architecture=le_net_mnist", "model.arguments={{}}"], r"le_net_mnist.*does not take .*\(13\)"),
        (
            ["model.architecture=lstm", "model.arguments={{}}"],
            r"'lstm' takes sequences \(T, features\), not 13 numbers",
        ),
        (["data.target=hue", "data.ignore=[hue]"], r"data\.ignore: 'hue' cannot also be the target"),
        (["data.dataset=table:none.csv"], r"data\.target: missing"),
    ],
)
def test_a_mistake_is_one_message(overrides, told, features, tmp_path):
    given = [override.format(npz=features) for override in overrides]
    said = mistake(invoke("run", runs.quick_file(tmp_path), *WINE, *into(tmp_path, *given)))
    assert re.search(told, said), said
