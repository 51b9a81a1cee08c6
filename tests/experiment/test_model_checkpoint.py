"""`model.checkpoint`: where weights start, and what a configuration without training evaluates."""

import numpy as np
import pytest
import runs
import torch
import yaml
from networks import state

import biotorch
from biotorch import models, rules
from biotorch.experiment import CheckpointError, ConfigError, OtherRunError, read, run
from biotorch.experiment.network import build_model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    runs.finish(folder, "model.mode.type=brsf", "training.hyperparameters.epochs=2")
    return folder / "quick"


@pytest.fixture(scope="module")
def figures(trained):
    return runs.json.loads((trained / "results.json").read_text())


def evaluation(tmp_path, checkpoint, **model):
    """The study of a configuration without training."""
    tree = {
        "experiment": {"name": "evaluated", "seed": 3, "output_dir": str(tmp_path)},
        "data": runs.QUICK["data"],
        "model": {"checkpoint": str(checkpoint), **model},
        "infrastructure": {"threads": 1},
    }
    path = tmp_path / "evaluate.yaml"
    path.write_text(yaml.safe_dump(tree))
    return read(path)


@pytest.mark.parametrize("which", ["", "model_best_acc.pth", "latest_model.pth"])
@pytest.mark.parametrize(
    "model", [{}, {"architecture": "le_net_mnist"}, {"architecture": "le_net_mnist", "mode": {"type": "fa"}}]
)
def test_a_configuration_without_training_evaluates_a_checkpoint(which, model, trained, figures, tmp_path):
    result = run(evaluation(tmp_path, trained / which, **model))[""]
    assert result["test"]["error"] == pytest.approx(figures["test"]["error"])
    assert result["validation"] is None
    assert result["history"] == []
    table = (tmp_path / "evaluated" / "results.csv").read_text().splitlines()
    assert len(table) == 2
    assert result["config"]["model"]["mode"]["type"] == model.get("mode", {"type": "brsf"})["type"]
    assert run(evaluation(tmp_path, trained / which, **model))[""] == result


def test_a_run_starts_from_the_weights_of_another_and_from_a_plain_state_dict(trained, figures, tmp_path):
    expected = figures["history"][figures["best_epoch"]]["validation"]
    torch.save(biotorch.load(trained).state_dict(), tmp_path / "plain.pth")
    weights = {
        name: value for name, value in runs.weights(trained / "model_best_acc.pth").items() if "feed" not in name
    }
    torch.save(weights, tmp_path / "weights.pth")
    sources = {"run": trained, "file": trained / "model_best_acc.pth"}
    sources |= {name: tmp_path / f"{name}.pth" for name in ("plain", "weights")}
    for name, source in sources.items():
        for rule in ("brsf", "dfa"):
            folder = tmp_path / name / rule
            result = runs.finish(folder, f"model.checkpoint={source}", f"model.mode.type={rule}")
            assert result["history"][0]["validation"]["error"] == expected["error"]


def test_the_feedback_comes_along_where_rule_and_options_are_the_same(trained, tmp_path):
    study = runs.quick(tmp_path, f"model.checkpoint={trained}", "model.mode.type=brsf", "experiment.seed=11")
    loaded, own = state(build_model(study.config, 10, (1, 32, 32))), runs.weights(trained / "model_best_acc.pth")
    assert all(torch.equal(loaded[name], own[name]) for name in own)
    study = runs.quick(tmp_path, f"model.checkpoint={trained}", "model.mode.type=fa", "experiment.seed=11")
    loaded = state(build_model(study.config, 10, (1, 32, 32)))
    assert torch.equal(loaded["features.0.weight"], own["features.0.weight"])
    assert not torch.equal(loaded["features.0.feedback"], own["features.0.feedback"])


@pytest.mark.parametrize("rule", rules.available())
def test_what_the_rule_derives_from_w_follows_the_weights_of_the_checkpoint(rule, trained, tmp_path):
    """As with pretrained weights: B starts at W, and constrain_weights keeps the norm that training starts with."""
    options = {"constrain_weights": True}
    if rule in ("fa", "frsf"):
        options["feedback_init"] = "weight"
    mode = f"model.mode={{type: {rule}, options: {runs.json.dumps(options)}}}"
    study = runs.quick(tmp_path, f"model.checkpoint={trained}", mode, "experiment.seed=11")
    model = build_model(study.config, 10, (1, 32, 32))
    layer = model.features[0]
    assert torch.equal(layer.weight, runs.weights(trained / "model_best_acc.pth")["features.0.weight"])
    assert torch.allclose(layer.initial_norm, layer.weight.norm())
    if rule == "fa":
        assert torch.equal(layer.feedback, layer.weight)
    if rule == "frsf":
        assert torch.allclose(layer.feedback, layer.weight.abs())


def test_a_rate_of_feedback_is_no_other_rule(tmp_path):
    runs.finish(tmp_path, "model.mode.type=dkp")
    start = [f"model.checkpoint={tmp_path / 'quick'}", "model.mode={type: dkp, options: {feedback_rate: 0.1}}"]
    own = build_model(runs.quick(tmp_path, *start).config, 10, (1, 32, 32)).state_dict()
    assert torch.equal(
        own["features.0.feedback"], biotorch.load(tmp_path / "quick").state_dict()["features.0.feedback"]
    )


@pytest.mark.parametrize("feedback", ["dense", "shared"])
def test_a_run_with_another_form_of_direct_feedback_is_loaded_again(feedback, tmp_path):
    mode = f"model.mode={{type: dfa, options: {{feedback: {feedback}}}}}"
    runs.finish(tmp_path, mode)
    model, own = biotorch.load(tmp_path / "quick"), runs.weights(tmp_path / "quick" / "model_best_acc.pth")
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())
    b = model.features[3].connections[0].feedback
    assert b.shape == ((10, 6 * 14 * 14) if feedback == "dense" else (10, 6, 5, 5))


def test_what_published_weights_imply_is_known_without_them():
    assert models.implied_by_weights("googlenet") == {"transform_input": True}
    assert models.implied_by_weights("inception_v3") == {"transform_input": True}
    assert models.implied_by_weights("resnet18") == models.implied_by_weights("le_net_mnist") == {}


def test_a_checkpoint_that_does_not_fit_is_told(trained, tmp_path):
    with pytest.raises(CheckpointError, match=r"quick does not fit le_net_cifar.*") as caught:
        run(runs.quick(tmp_path, f"model.checkpoint={trained}", "model.architecture=le_net_cifar"))
    assert "size mismatch" in str(caught.value) or "Missing key" in str(caught.value)
    with pytest.raises(CheckpointError, match="does not fit"):
        run(evaluation(tmp_path, trained, architecture="le_net_cifar"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run(runs.quick(tmp_path / "other", f"model.checkpoint={tmp_path / 'nowhere.pth'}"))


def test_another_number_of_classes_is_told(trained, tmp_path):
    x = np.random.default_rng(0).integers(0, 255, (40, 32, 32, 1), dtype=np.uint8)
    y = np.arange(40) % 4
    np.savez(tmp_path / "four.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    overrides = (f"data.dataset={tmp_path / 'four.npz'}", f"model.checkpoint={trained}")
    with pytest.raises((CheckpointError, ConfigError), match=r"10.*4|4.*10"):
        run(runs.quick(tmp_path, *overrides))


@pytest.mark.parametrize(
    "content",
    [
        {"config": {}},
        {"config": {"a": 1}, "state_dict": {}},
        {"config": {}, "model": {}},
        {"features.0.weight": 3},
        {1: 2},
        {"model": {"features.0.weight": torch.zeros(1)}},
        {},
    ],
)
def test_a_file_of_something_else_is_told(content, tmp_path):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth"):
        run(runs.quick(tmp_path, f"model.checkpoint={tmp_path / 'other.pth'}"))
    with pytest.raises(CheckpointError, match=r"other\.pth"):
        biotorch.load(tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth"):
        run(evaluation(tmp_path, tmp_path / "other.pth"))


def test_figures_of_a_checkpoint_that_has_changed_are_not_taken_for_its_own(trained, tmp_path):
    copied = tmp_path / "copied.pth"
    copied.write_bytes((trained / "model_best_acc.pth").read_bytes())
    run(evaluation(tmp_path, copied))
    content = torch.load(copied, weights_only=True)
    content["model"]["classifier.3.bias"] += 1
    torch.save(content, copied)
    with pytest.raises(OtherRunError, match=r"an older .*copied\.pth, which has changed"):
        run(evaluation(tmp_path, copied))


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_does_not_write_over_what_it_starts_from(overwrite, tmp_path):
    runs.finish(tmp_path)
    before = runs.left_behind(tmp_path / "quick")
    (tmp_path / "quick" / "results.json").rename(tmp_path / "kept.json")  # as if it were not finished
    start = f"model.checkpoint={tmp_path / 'quick' / 'model_best_acc.pth'}"
    with pytest.raises(ConfigError, match="lies in the folder of this run"):
        runs.finish(tmp_path, start, overwrite=overwrite)
    (tmp_path / "kept.json").rename(tmp_path / "quick" / "results.json")
    assert runs.left_behind(tmp_path / "quick") == before
