"""`biotorch attack` and the section `attacks`, as a user meets them."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from commands import SHORT, into, invoke, mistake

from biotorch.experiment.folder import RunFolder
from biotorch.experiment.measure import find_twin, runs_in
from biotorch.experiment.reading import read

CONFIG = "configs/quickstart.yaml"
FEW = (
    "attacks.attacks=[random_signs, fgsm, {type: pgd, steps: 4}]",
    "attacks.epsilons=[0.05, 0.2]",
    "attacks.images=40",
)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two trained points, under backpropagation and FA."""
    folder = tmp_path_factory.mktemp("attacked")
    axes = "sweep={model.mode.type: [backpropagation, fa]}"
    result = invoke("run", CONFIG, axes, *SHORT[1:], *into(folder, name="pair"), "--jobs", "1")
    assert result.exit_code == 0, result.output
    return folder / "pair"


def fa(sweep):
    return next(path for path in runs_in(sweep) if "fa" in path.name)


def test_a_sweep_is_studied(sweep):
    result = invoke("attack", sweep, *FEW)
    assert result.exit_code == 0, result.output
    assert "attacks to run, at most" in result.output
    assert result.output.count("verdict") >= 2
    for run in runs_in(sweep):
        study = json.loads((run / "attacks" / "study.json").read_text())["study"]
        assert study["verdict"] in ("inconclusive", "masked", "not robust", "robust")
        assert study["sentence"] in (run / "attacks" / "study.md").read_text()
        assert (run / "attacks" / "examples.png").stat().st_size > 1000
        names = {(each["attack"], each["gradient"]) for each in study["measurements"]}
        assert ("pgd", "true") in names
        assert (("pgd", "feedback") in names) == ("fa" in run.name)
        assert (("transfer", None) in names) == ("fa" in run.name)  # from the twin under backpropagation
        for each in study["measurements"]:
            assert each["interval"][0] <= each["robust_accuracy"] <= each["interval"][1]
            assert {"n", "seconds", "queries", "clean_accuracy"} <= each.keys()
    table = (sweep / "robustness.md").read_text()
    assert "backpropagation" in table
    assert "PGD, feedback gradient" in table
    assert (sweep / "white_box.png").is_file()


def test_what_is_measured_is_not_measured_again(sweep):
    assert invoke("attack", fa(sweep), *FEW).exit_code == 0
    before = {path: path.stat().st_mtime_ns for path in (fa(sweep) / "attacks").glob("*pgd*.json")}
    result = invoke("attack", fa(sweep), *FEW)
    assert "attacks to run" not in result.output
    assert {path: path.stat().st_mtime_ns for path in (fa(sweep) / "attacks").glob("*pgd*.json")} == before


def test_equal_seeds_give_equal_figures(sweep):
    def figures():
        invoke("attack", fa(sweep), *FEW)
        study = json.loads((fa(sweep) / "attacks" / "study.json").read_text())["study"]
        return [(each["label"], each["epsilon"], each["robust"]) for each in study["measurements"]]

    first = figures()
    for path in (fa(sweep) / "attacks").glob("*.json"):
        path.unlink()
    assert figures() == first


def _of(config, epochs=None, lr=None, adversarial=None):
    """Its training section, changed."""
    tree = config.training.model_dump()
    tree["adversarial"] = adversarial
    if epochs is not None:
        tree["hyperparameters"]["epochs"] = epochs
    if lr is not None:
        tree["optimizer"]["lr"] = lr
    return type(config.training).model_validate(tree)


def test_the_twin_is_the_one_under_backpropagation(sweep):
    config = read(CONFIG, ["model.mode.type=fa", *SHORT, *into(sweep.parent, name="pair")]).config.for_task(
        "classification"
    )
    twin = find_twin(fa(sweep), config)
    assert twin is not None
    assert "backpropagation" in twin.name
    assert find_twin(fa(sweep), config.model_copy(update={"training": _of(config, lr=0.5)})) == twin  # rules have rates
    for changes in ({"epochs": 77}, {"adversarial": {"epsilon": 0.1}}):  # trained differently, it is no twin
        assert find_twin(fa(sweep), config.model_copy(update={"training": _of(config, **changes)})) is None
    assert (
        find_twin(fa(sweep), config.model_copy(update={"data": read(CONFIG, ["data.dataset=mnist"]).config.data}))
        is None
    )


def test_a_section_of_the_configuration(tmp_path):
    result = invoke("run", CONFIG, *SHORT, *into(tmp_path), *FEW)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "short" / "attacks" / "study.json").is_file()


def test_mistakes(sweep, tmp_path):
    run = fa(sweep)
    assert "holds no trained network" in mistake(invoke("attack", tmp_path))
    assert "Did you mean 'images'" in mistake(invoke("attack", run, "attacks.imagess=3"))
    assert "Did you mean 'pgd'" in mistake(invoke("attack", run, "attacks.attacks=[pgdd]"))
    assert "takes no stepz" in mistake(invoke("attack", run, "attacks.attacks=[{type: pgd, stepz: 3}]"))
    assert "above 0" in mistake(invoke("attack", run, "attacks.epsilons=[0]"))
    assert "a fraction such as 8/255" in mistake(invoke("attack", run, "attacks.epsilons=[8]"))
    assert "attacks.images" in mistake(invoke("attack", run, "--images", "0"))
    assert "only attacks and data and infrastructure" in mistake(invoke("attack", run, "training.x=3"))
    assert "no checkpoint" in mistake(invoke("attack", run, "attacks.twin=nowhere", *FEW))


def test_the_global_generator_is_left_alone(sweep):
    before = torch.random.get_rng_state()
    invoke("attack", fa(sweep), *FEW)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.slow
def test_corruptions_and_calibration_stand_beside_the_attacks(sweep):
    run, few = fa(sweep), ("attacks.attacks=[fgsm]", *FEW[1:], "--corruptions", "--calibration")
    result = invoke("attack", run, *few)
    assert result.exit_code == 0, result.output
    assert result.output.count("fog at severities 1 to 5") == 1
    content = json.loads((run / "attacks" / "study.json").read_text())
    found, ece = content["corruptions"], content["calibration"]["ece"]
    assert len(found["accuracy"]) == len(found["baseline"]) == 15  # of the twin under backpropagation
    assert content["calibration"]["n"] == found["n"] == 40
    rows = [line.strip("| ").split(" | ") for line in (run / "robustness.md").read_text().splitlines() if "|" in line]
    assert rows[0][-3:] == ["corrupted", "mCE", "ECE"]
    assert rows[-1][-3:] == [f"{each:.1f}" for each in (found["mean_accuracy"], found["mce"], ece)]
    report = (run / "attacks" / "study.md").read_text()
    assert found["sentence"] in report
    assert "| fog |" in report
    assert {"corruption.png", "calibration.png"} <= {path.name for path in run.iterdir()}

    assert "fog at severities" not in invoke("attack", run, *few).output  # nothing is measured again
    page = sweep.parent / "page.html"
    assert invoke("report", sweep, "-o", page).exit_code == 0
    assert content["calibration"]["sentence"] in page.read_text()
    assert 'id="beside"' in page.read_text()
    RunFolder(run).clear_attacks()  # as a new training does
    assert not (run / "attacks").exists()


def test_examples_are_saved_as_8_bit_images(sweep):
    run = fa(sweep)
    result = invoke("attack", run, *FEW, "--save")
    assert result.exit_code == 0, result.output
    study = json.loads((run / "attacks" / "study.json").read_text())
    accuracies = []
    for epsilon in (0.05, 0.2):
        path = run / "attacks" / f"adversarial-epsilon={epsilon:g}.npz"
        with np.load(path) as file:
            saved = dict(file)
        assert saved["adversarial"].dtype == saved["images"].dtype == np.uint8
        change = saved["adversarial"].astype(int) - saved["images"].astype(int)
        assert 0 < abs(change).max() <= 255 * epsilon
        assert saved["epsilon"] == epsilon
        assert saved["state_hash"] == study["state_hash"]
        accuracies.append(100 * (saved["predictions"] == saved["labels"]).mean())
        assert f"in 8 bits {accuracies[-1]:.1f} %" in result.output
        lowest = min(
            each["robust_accuracy"]
            for each in study["study"]["measurements"]
            if each["epsilon"] == epsilon and each["purpose"] == "figure" and each["attack"] != "transfer_to"
        )
        assert abs(accuracies[-1] - lowest) < 15  # rounding undoes some
        assert path.with_suffix(".png").is_file()
    assert accuracies[1] < accuracies[0]
    before = path.read_bytes()
    assert invoke("attack", run, *FEW).exit_code == 0
    assert path.read_bytes() == before


@pytest.mark.slow
def test_smallest_perturbations_are_measured_once_and_shown(sweep):
    result = invoke("attack", sweep, *FEW, "attacks.images=20", "--smallest")
    assert result.exit_code == 0, result.output
    assert "Smallest perturbations: median distance (L∞)" in (sweep / "smallest.md").read_text()
    assert (sweep / "smallest.png").stat().st_size > 1000
    read = json.loads((fa(sweep) / "attacks" / "study.json").read_text())["smallest"]
    assert {(each["attack"], each["gradient"]) for each in read} == {
        (attack, gradient) for attack in ("deepfool", "fab") for gradient in ("feedback", "true")
    }
    medians = {(each["attack"], each["gradient"]): each["median"] for each in read}
    assert medians["fab", "true"] <= medians["deepfool", "true"]
    found = {path: path.stat().st_mtime_ns for path in (fa(sweep) / "attacks").glob("*smallest*")}
    assert len(found) == 4
    assert invoke("attack", fa(sweep), *FEW, "attacks.images=20", "--smallest").exit_code == 0
    assert found == {path: path.stat().st_mtime_ns for path in (fa(sweep) / "attacks").glob("*smallest*")}
    page = sweep / "smallest.html"
    assert invoke("report", sweep, "-o", page).exit_code == 0
    assert "Smallest perturbations: median distance" in page.read_text()
    [data] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), flags=re.DOTALL)
    [figures] = [each for each in json.loads(data)["studies"] if each["attacks"]]
    [shown] = [each for each in figures["attacks"] if each["name"] == "smallest perturbations"]
    assert (shown["x"], shown["y"]) == ("ε", "accuracy (%)")
