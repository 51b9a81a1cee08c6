"""Runs on tables and float features: a rule end to end, evaluating on other rows, auditing, and what is refused."""

import gzip
import re
import shutil
from importlib import resources

import numpy as np
import pytest
import runs
import yaml
from commands import into, invoke, mistake

from biotorch.data.splits import fifth
from biotorch.errors import DataError, OtherRunError
from biotorch.experiment import ConfigError, read, run
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


@pytest.fixture
def rows(tmp_path):
    """Lines of wine's file by their kind: the whole, and those that are for the test. Other wines are in files."""
    header, *lines = gzip.decompress((resources.files("biotorch.data") / "wine.csv.gz").read_bytes()).decode().split()
    held_out = [lines[index] for index in fifth(len(lines))[1]]
    for name, chosen in (("whole", lines), ("held_out", held_out), ("few", lines[:10]), ("less", lines[3:])):
        (tmp_path / f"{name}.csv").write_text("\n".join([header, *chosen]))
    return lambda name: str(tmp_path / f"{name}.csv")


def evaluation(folder, checkpoint, *overrides):
    """Result of a configuration without training."""
    tree = {"experiment": {"name": "evaluation", "output_dir": str(folder)}, "data": {"dataset": "wine"}}
    path = folder / "evaluation.yaml"
    path.write_text(yaml.safe_dump({**tree, "model": {"checkpoint": str(checkpoint)}}))
    return run(read(path, overrides), overwrite=True)[""]


def test_other_rows_are_measured_with_the_preparation_of_the_training(finished, rows, tmp_path):
    result, folder = finished
    expected, changed = result["test"], [("data.test", rows("held_out"))]
    with pytest.warns(UserWarning, match="10 of the 10 test examples are equal to training"):
        few = evaluate_run(folder, overrides=[("data.test", rows("few"))])
    assert (few["examples"], few["measured_on"], "trained_on" in few) == (10, rows("few"), False)
    again = evaluate_run(folder, overrides=changed)  # the same rows as those of the run's own test, in a file
    assert {key: again[key] for key in expected} == expected
    assert again["data"]["preparation"] == result["data"]["preparation"]
    for overrides in ((), ("experiment.seed=9",), (f"data.test={rows('held_out')}",)):
        assert evaluation(tmp_path, folder, *overrides)["test"] == expected


def test_inputs_that_a_network_does_not_know_are_refused_or_told(finished, tmp_path):
    _, folder = finished
    for key, value in (("data.standardise", False), ("data.ignore", ["hue"]), ("data.validation_size", 5)):
        with pytest.raises(ConfigError, match=r"quick was trained on inputs that were made in another way"):
            evaluate_run(folder, overrides=[(key, value)])
        with pytest.raises(ConfigError, match=r"model\.checkpoint: .*quick was trained on inputs that were made in"):
            evaluation(tmp_path, folder, f"{key}={value}")
    with pytest.warns(UserWarning, match="was trained on inputs that were made in another way"):
        runs.finish(tmp_path, *WINE, f"model={{checkpoint: {folder}, mode: {{type: fa}}}}", "data.validation_size=5")
    with pytest.raises(ConfigError, match=r"was trained for 3 classes, but data\.dataset 'diabetes' has 1 target of a"):
        evaluation(tmp_path, folder, "data.dataset=diabetes")


def test_test_rows_are_no_data_of_the_training(rows, tmp_path):
    settings = f"data={{dataset: 'table:{rows('whole')}', target: cultivar, test: '{rows('less')}'}}"
    with pytest.warns(UserWarning, match=f"175 of the {178 - 3} test examples are equal to training examples"):
        result = runs.finish(tmp_path, settings, *WINE[1:])
    assert (result["data"]["train"], result["data"]["validation"], result["data"]["test"]) == (160, 18, 175)
    path, few, own = tmp_path / "quick", ("data.test", rows("few")), ("data.test", rows("less"))
    assert {"trained_on", "measured_on"}.isdisjoint(evaluate_run(path, overrides=[own]))
    shutil.copy(rows("few"), rows("less"))
    with pytest.raises(OtherRunError, match=r"175 test examples then.*test/less\.csv"):
        evaluate_run(path)
    for changed in (few, own):
        found = evaluate_run(path, overrides=[changed])
        assert (found["measured_on"], found["examples"], "trained_on" in found) == (changed[1], 10, False)
    shutil.copy(rows("held_out"), rows("whole"))
    with pytest.raises(OtherRunError, match=r"\(178 training examples then, 36 training examples now; whole\.csv"):
        evaluate_run(path, overrides=[few])


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
