"""`model.train_only`: what it names is trained, all else stays to the bit."""

import re

import pytest
import runs
import torch
from commands import into, invoke, mistake
from networks import TRAINING
from torch import nn

import biotorch
from biotorch.experiment import ConfigError, Display, Interrupted, run
from biotorch.experiment.network import train_only
from biotorch.report import table
from biotorch.results.groups import by_configuration, label

#: Whatever may change a weight without a gradient.
DECAYED = (
    "training.optimizer={type: SGD, lr: 0.05, momentum: 0.9, weight_decay: 0.5}",
    "training.clip_gradient_norm=1.0",
)


def network():
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Sequential(nn.Linear(3, 3), nn.ReLU()), nn.Linear(3, 2))


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["3"], {"3.weight", "3.bias"}),
        (["3.weight"], {"3.weight"}),
        (["2"], {"2.0.weight", "2.0.bias"}),
        (["2.0", "1.bias"], {"2.0.weight", "2.0.bias", "1.bias"}),
        (["*.bias"], {"0.bias", "1.bias", "2.0.bias", "3.bias"}),
        (["[02]"], {"0.weight", "0.bias", "2.0.weight", "2.0.bias"}),
        (["*"], {"0.weight", "0.bias", "1.weight", "1.bias", "2.0.weight", "2.0.bias", "3.weight", "3.bias"}),
    ],
)
def test_a_pattern_names_parameters_and_modules_with_all_that_is_in_them(patterns, expected):
    model = network()
    train_only(model, patterns)
    assert trained(model) == expected


def test_a_feedback_that_learns_is_trained_where_its_weight_is():
    model = biotorch.convert(network(), "kp")
    train_only(model, ["3.weight", "2.0.bias"])
    assert trained(model) == {"3.weight", "3.feedback", "2.0.bias"}


@pytest.mark.parametrize("pattern", ["4", "2.1", "relu", "3.weights", "", "Linear"])
def test_a_pattern_that_names_no_parameter_is_told(pattern):
    model = network()
    with pytest.raises(
        ConfigError, match=rf"model\.train_only: unknown module or parameter {re.escape(repr(pattern))}"
    ):
        train_only(model, ["3", pattern])
    assert len(trained(model)) == 8


def test_the_error_names_the_nearest(tmp_path):
    said = mistake(invoke("run", runs.quick_file(tmp_path), *into(tmp_path, "model.train_only=[clasifier]")))
    assert "'clasifier'. Did you mean 'classifier'" in said
    for wrong in ("[]", "head", "[1]"):
        assert "model.train_only" in mistake(
            invoke("run", runs.quick_file(tmp_path), *into(tmp_path, f"model.train_only={wrong}"))
        )


def test_a_weight_with_two_names_is_trained_under_either():
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 3), "hidden": nn.Linear(3, 3), "head": nn.Linear(3, 5)})
    model["head"].weight = model["embedding"].weight
    train_only(model, ["head"])
    assert trained(model) == {"embedding.weight", "head.bias"}


@pytest.mark.parametrize("rule", TRAINING)
def test_what_is_not_trained_stays_to_the_bit(rule, tmp_path, monkeypatch):
    monkeypatch.setitem(runs.models.registry.OWN, "small", runs.small)
    options = f"model.mode={{type: {rule}, options: {{constrain_weights: true}}}}"
    overrides = (*runs.EVERYTHING_MATTERS, *DECAYED, options, "model.train_only=['7', '4.bias']")
    result = runs.finish(tmp_path, *overrides)
    start = biotorch.experiment.network.build_model(runs.quick(tmp_path, *overrides).config, 10, (1, 8, 8))
    before, after = dict(start.named_parameters()), runs.weights(tmp_path / "quick" / "latest_model.pth")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    learned = {"7.feedback"} if biotorch.rules.get(rule).learns else set()
    assert changed == {"7.weight", "7.bias", "4.bias"} | learned
    assert not torch.equal(start[1].running_mean, after["1.running_mean"])
    assert result["history"][-1]["gradient_angles"].keys() == {"7"}
    content = torch.load(tmp_path / "quick" / "latest_model.pth", weights_only=True)
    assert sum(len(group["params"]) for group in content["optimizer"]["param_groups"]) == len(changed)
    assert trained(biotorch.load(tmp_path / "quick")) == changed


def test_it_continues_to_the_bit(tmp_path):
    class Stop(Display):
        def update(self, trainer):
            if trainer.step == 9:
                raise KeyboardInterrupt

    overrides = (*DECAYED, "model.train_only=[classifier.3]", "infrastructure.checkpoint_seconds=0")
    whole = runs.finish(tmp_path / "whole", *overrides)
    with pytest.raises((KeyboardInterrupt, Interrupted)):
        run(runs.quick(tmp_path / "stopped", *overrides), display=Stop())
    assert runs.finish(tmp_path / "stopped", *overrides)["state_hash"] == whole["state_hash"]


def test_all_of_it_is_the_same_as_without(tmp_path):
    first, second = (runs.finish(tmp_path / name, f"model.train_only={name}") for name in ("['*']", "null"))
    assert first["state_hash"] == second["state_hash"]


# Labels --------------------------------------------------------------------------------------------


def result(rule="backpropagation", train_only=None, arguments=None, lr=0.1):
    """As much of a result as a table looks at."""
    return {
        "state_hash": "",
        "config": {
            "experiment": {"seed": 0},
            "data": {"dataset": "digits", "validation": "split"},
            "model": {
                "architecture": "mlp",
                "arguments": arguments or {},
                "mode": {"type": rule},
                "train_only": train_only,
                "checkpoint": None,
            },
            "training": {"hyperparameters": {"epochs": 1}, "optimizer": {"type": "SGD", "lr": lr}},
        },
        "test": {"error": 10.0},
        "validation": {"error": 11.0},
        "history": [],
        "environment": {"biotorch": "0", "commit": None, "torch": "2", "device": "cpu", "threads": 1},
    }


def labels(*results):
    groups = by_configuration(results)
    return [label(group, groups) for group in groups]


def test_what_is_trained_and_the_arguments_tell_groups_apart():
    assert labels(result(), result(train_only=["head"])) == ["backpropagation", "shallow (head only)"]
    assert labels(result("fa", ["head", "*.bias"]), result("fa")) == ["fa (head, *.bias only)", "fa"]
    shallow = [result(train_only=["head"], lr=lr) for lr in (0.1, 0.2)]
    assert labels(*shallow, result()) == ["backpropagation", "shallow (head only) 0.1", "shallow (head only) 0.2"]
    depths = [result("fa", arguments={"depth": depth, "width": 8}) for depth in (1, 2)]
    assert labels(*depths, result("dfa")) == ["fa depth=1", "fa depth=2", "dfa"]
    assert labels(result("fa"), depths[0]) == ["fa", "fa depth=1 width=8"]


def test_a_table_without_perplexity_has_no_column_of_it():
    assert table([result()]).header[:3] == ["rule", "test error (%)", "alignment angle (°)"]
    mixed = result("fa")
    mixed["test"]["perplexity"] = 3.456
    rows = table([result(), mixed])
    assert [row[1:3] for row in rows.rows] == [["10.00", "-"], ["10.00", "3.46"]]
