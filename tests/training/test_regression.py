"""Targets that are numbers: losses, figures, what a run is judged by, and every rule."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import runs
import torch
from networks import RULES
from numbers_cases import STD, regression, sequences
from rule_names import one_per_path, without_decay
from torch import nn
from torch.nn import functional as F

import biotorch
from biotorch import data, metrics
from biotorch.auditing import audit
from biotorch.data.features import FeatureSplit
from biotorch.errors import ConfigError, OtherRunError, SectionError
from biotorch.experiment import run
from biotorch.experiment.measure import evaluate_run
from biotorch.experiment.results import load_results
from biotorch.training import LossConfig, Observer, Trainer, TrainingConfig, evaluate
from biotorch.training.distributed import one_process
from biotorch.training.evaluation import Tally

DISTANCES = {"mse": F.mse_loss, "L1Loss": F.l1_loss, "smooth_l1": F.smooth_l1_loss, "huber": F.huber_loss}
TABLE = (
    "model={architecture: mlp, arguments: {width: 16, depth: 1}}",
    "data={dataset: digits}",
    "training.hyperparameters={epochs: 2, batch_size: 20}",
)


def network(outputs=1, rule="backpropagation") -> nn.Module:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, outputs))
    return biotorch.convert(model, rule, copy_weights=False, seed=1)


def config(epochs=1, **training) -> TrainingConfig:
    return TrainingConfig.model_validate(
        {
            "hyperparameters": {"epochs": epochs, "batch_size": 20},
            "optimizer": {"type": "SGD", "lr": 0.05, "weight_decay": 1e-4},
            **training,
        }
    )


@pytest.fixture
def table(monkeypatch):
    """Runs read this regression of two targets, whatever data set they name."""
    monkeypatch.setattr(data, "load", lambda *_: regression(2), raising=False)


# Losses and figures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("targets", [1, 3])
def test_distances_take_the_numbers_as_they_are(name, targets):
    outputs, y = torch.randn(7, targets), torch.randn(7, targets)
    loss = LossConfig(name=name).build("regression")
    assert torch.equal(loss(outputs, y), DISTANCES[name](outputs, y))
    assert loss.size(y) == 7  # examples, whatever the number of targets
    with pytest.raises(ValueError, match=r"\(7, 4\) do not match targets of shape"):
        loss(torch.randn(7, 4), y)


@pytest.mark.parametrize("name", sorted(set(biotorch.training.losses.loss_names()) - {"L1Loss"}))
def test_losses_of_classes_are_refused_for_numbers(name):
    if name in ("MSELoss", "SmoothL1Loss", "HuberLoss"):
        return
    with pytest.raises(SectionError, match=f"name: {name} compares outputs with classes.*take mse, l1, smooth_l1"):
        LossConfig(name=name).build("regression")


@pytest.mark.parametrize("targets", [1, 3])
def test_figures_are_those_of_numpy_in_batches_of_any_size(targets):
    found, model = regression(targets), network(targets)
    x, y = found.test.inputs, found.test.labels.double().numpy()
    residuals = ((model(x).detach().double().numpy() - y) ** 2).sum(0)
    r2 = (1 - residuals / ((y - y.mean(0)) ** 2).sum(0)).mean()
    rmse = math.sqrt((residuals * np.array(STD[:targets]) ** 2).sum() / y.size)
    for size in (1, 7, 500):
        figures = evaluate(model, found.test, LossConfig(name="mse").build(), batch_size=size, scale=STD[:targets])
        assert figures == pytest.approx({"loss": residuals.sum() / y.size, "rmse": rmse, "r2": r2}, rel=1e-6)


def test_sums_of_several_processes_are_those_of_one():
    """Each process adds the shares that it has; even one whose share is a single example, of no variance."""
    found, model = regression(3), network(3)
    tallies = [Tally.of(found.test, 1, STD, torch.device("cpu")) for _ in range(3)]
    for tally, part in zip((tallies[0], tallies[1], tallies[1]), ([0], range(1, 30), range(30, 50)), strict=True):
        x, y = next(found.test.batches([torch.tensor(part)]))
        tally.add(F.mse_loss(model(x), y), len(y), model(x), y)
    assert math.isnan(tallies[0].here()["r2"])
    assert tallies[2].here() == {}
    tallies[2].sums += tallies[0].sums + tallies[1].sums
    whole = evaluate(model, found.test, F.mse_loss, scale=STD)
    assert tallies[2].result(one_process()) == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, -1234.567])
def test_a_constant_target_has_no_r2(value):
    y = torch.cat([torch.randn(50, 1), torch.full((50, 1), value)], 1)
    figures = evaluate(network(2), FeatureSplit(torch.randn(50, 6), y), F.mse_loss, batch_size=7)
    assert math.isnan(figures["r2"])
    assert figures["rmse"] == pytest.approx(math.sqrt(figures["loss"]), rel=1e-6)


# Training ------------------------------------------------------------------------------------------------


@without_decay
@pytest.mark.parametrize("rule", one_per_path(RULES))
def test_every_rule_predicts_better_than_the_mean(rule):
    found = regression(2)
    trainer = Trainer(network(2, rule), found, config(epochs=10), LossConfig(name="mse").build("regression"), seed=5)
    last = trainer.run()[-1]["validation"]
    best = trainer.history[trainer.best["epoch"]]["validation"]
    assert best["loss"] == min(record["validation"]["loss"] for record in trainer.history[1:])
    assert best["r2"] > 0.3
    assert last["loss"] < 0.8  # predicting the training set's mean gives about 1


def test_backpropagation_is_plain_pytorch_to_the_bit():
    found, settings = regression(2), config(epochs=2)
    model, plain = network(2), network(2)
    trainer = Trainer(model, found, settings, LossConfig(name="huber").build("regression"), seed=5)
    trainer.run()
    optimizer = torch.optim.SGD(plain.parameters(), 0.05, weight_decay=1e-4)
    for epoch in (1, 2):
        for index in trainer.updates_of(epoch):
            optimizer.zero_grad()
            F.huber_loss(plain(found.train.inputs[index]), found.train.labels[index]).backward()
            optimizer.step()
    for own, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(own, other)


def test_a_training_goes_on_from_the_middle_of_an_epoch():
    class Save(Observer):
        def on_update(self, trainer):
            if (trainer.epoch, trainer.step) == (2, 3):
                states.append(copy.deepcopy(trainer.state_dict()))

    states, histories = [], []
    for state in (None, 0):
        trainer = Trainer(network(2), regression(2), config(epochs=3), F.mse_loss, seed=5, observer=Save())
        if state is not None:
            trainer.load_state_dict(states[state])
        histories.append([runs.timeless(record) for record in trainer.run()])
    assert histories[0] == histories[1]


def test_a_regression_is_judged_by_its_loss(monkeypatch):
    """The best epoch, the early stop and the plateau follow the loss, although R² says otherwise."""
    losses = [9.0, 3.0, 2.0, 2.5, 2.6, 2.7]

    def scripted(*args, **kwargs):
        return {"loss": losses[trainer.epoch], "rmse": 10.0 - trainer.epoch, "r2": math.nan}

    monkeypatch.setattr("biotorch.training.loop.evaluate", scripted)
    plateau = {"type": "ReduceLROnPlateau", "patience": 0, "factor": 0.5}
    settings = config(epochs=5, early_stop={"patience": 2}, lr_scheduler=plateau)
    trainer = Trainer(network(), regression(), settings, F.mse_loss, seed=5)
    trainer.run()
    assert [record["learning_rate"] for record in trainer.history] == [0.05, 0.05, 0.05, 0.05, 0.025]
    assert trainer.best["epoch"] == 2


@pytest.mark.parametrize(("rule", "sent"), [("drtp", lambda e, y: -y), ("sdfa", lambda e, y: e.sign())])
def test_what_target_and_sign_rules_send_back(rule, sent):
    """A row of `drtp` is the target itself, of `sdfa` the sign of each target's error; both weigh 1 / n."""
    model, (x, y) = network(2, rule), next(regression(2).train.batches([torch.arange(4)]))
    with biotorch.targets(y):
        output = model(x)
    F.mse_loss(output, y).backward()
    below = torch.tanh(model[0](x))
    slope = 1 - torch.tanh(model[2](below)) ** 2
    error = sent(output - y, y) / 4
    torch.testing.assert_close(model[2].weight.grad, ((error @ model[4].feedback) * slope).T @ below)


def test_the_audit_and_the_gradient_angle_need_no_classes():
    x, y = next(regression(2).train.batches([torch.arange(20)]))
    assert audit(network(2, "fa"), x).leak == 0
    assert audit(network(2), x).leak == 1
    angles = metrics.gradient_alignment(network(2), F.mse_loss, x, y)
    assert max(angles.values()) < 0.1
    assert 20 < metrics.gradient_alignment(network(2, "fa"), F.mse_loss, x, y)["0"] < 160


# Runs ----------------------------------------------------------------------------------------------------


def test_a_run_of_a_regression_says_what_it_has_used_and_found(table, tmp_path):
    noise = "training.noise_pretraining={updates: 3}"
    study = runs.quick(tmp_path, *TABLE, noise)
    result, folder = run(study)[""], tmp_path / "quick"
    assert result["config"]["model"]["loss_function"] == {"name": "mse"}
    assert result["test"].keys() == {"loss", "rmse", "r2"}
    assert evaluate_run(folder)["rmse"] == result["test"]["rmse"]
    assert not (folder / "best_acc.txt").exists()
    assert "accuracy" not in (folder / "results.csv").read_text()
    assert {"rmse/validation", "r2/train", "loss/train"} <= runs.curves(folder).keys()
    assert run(runs.quick(tmp_path, *TABLE, noise, "model.loss_function.name=mse"))[""] == load_results(folder)
    with pytest.raises(OtherRunError, match="'MSELoss' in the folder, 'L1Loss' asked for"):
        run(runs.quick(tmp_path, *TABLE, noise, "model.loss_function.name=l1"))
    (folder / "results.json").unlink()  # it is not finished
    with pytest.raises(OtherRunError, match="'CrossEntropyLoss' asked for"):
        run(runs.quick(tmp_path, *TABLE, noise, "model.loss_function.name=cross_entropy"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.loss_function.name=cross_entropy", r"model\.loss_function\.name: CrossEntropyLoss compares outputs"),
        ("training.metrics.top_k=3", r"training\.metrics\.top_k: a setting of classes, but the targets are numbers"),
        ("training.adversarial={epsilon: 0.1}", r"training\.adversarial: a setting of images"),
    ],
)
def test_settings_of_classes_and_images_are_refused_before_the_training(override, message, table, tmp_path):
    with pytest.raises(ConfigError, match=message):
        run(runs.quick(tmp_path, *TABLE, override))
    assert not (tmp_path / "quick" / "config.yaml").exists()


def test_other_units_and_other_tasks_are_refused_when_a_network_is_measured(table, tmp_path, monkeypatch):
    run(runs.quick(tmp_path, *TABLE))
    monkeypatch.setattr(data, "load", lambda *_: regression(3), raising=False)
    with pytest.raises(OtherRunError, match=r"2 targets of a regression then, 3 targets"):
        evaluate_run(tmp_path / "quick")
    classes = dataclasses.replace(sequences(), record={"classes": 2})
    monkeypatch.setattr(data, "load", lambda *_: classes, raising=False)
    with pytest.raises(OtherRunError, match=r"2 targets of a regression then, 2 classes"):
        evaluate_run(tmp_path / "quick")
    other = regression(2)
    other.record["target_std"] = [1.0, 1.0]
    monkeypatch.setattr(data, "load", lambda *_: other, raising=False)
    with pytest.raises(ConfigError, match="its targets are in other units"):
        evaluate_run(tmp_path / "quick")
