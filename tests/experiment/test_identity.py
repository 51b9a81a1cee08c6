"""Which settings tell runs apart: whatever changes a number, by its completed configuration."""

from __future__ import annotations

import inspect
import json

import pytest
from runs import QUICK, finish

from biotorch import models, rules
from biotorch.experiment import OtherRunError
from biotorch.experiment.config import Config
from biotorch.experiment.identity import text_of, what_counts, what_counts_in_a_study
from biotorch.experiment.sweep import changed
from biotorch.robustness.plan import ATTACKS
from biotorch.rules.registry import completed_options
from biotorch.training import losses, optimizers, schedules
from biotorch.training.arguments import parameters


def tree(**changes):
    """Configuration as a run stores it, with changes by key path (`__` for a dot)."""
    return changed(QUICK, {key.replace("__", "."): value for key, value in changes.items()})


def identity(values):
    return text_of(what_counts(values))


#: Arguments that schedulers need, by name.
_NEEDED = {"step_size": 3, "milestones": [2], "gamma": 0.5, "T_max": 5, "T_0": 5, "max_lr": 0.1, "base_lr": 0.001}

OPTIMIZERS = [(name, optimizers._optimizer_class(name), ("params", "lr")) for name in optimizers.optimizer_names()]
SCHEDULERS = [(name, schedules._scheduler_class(name), ("optimizer",)) for name in schedules.scheduler_names()]
LOSSES = [(name, losses._loss_class(name), ("size_average", "reduce")) for name in losses.loss_names()]
RULES = [(name, completed_options(name, {})) for name in rules.available()]
OWN = [(name, models.registry.completed_arguments(name, {})) for name in models.registry.OWN]


def of_class(section, key, name, kind, given, more=()):
    defaults = {
        each: parameter.default
        for each, parameter in parameters(kind, given).items()
        if parameter.default is not inspect.Parameter.empty
    }
    needed = {each: _NEEDED[each] for each in parameters(kind, given) if each in _NEEDED and each not in defaults}
    return section, {key: name, **needed, **dict(more)}, "", defaults


CASES = [
    *(of_class("training.optimizer", "type", *each, more={"lr": 0.01}.items()) for each in OPTIMIZERS),
    *(of_class("training.lr_scheduler", "type", *each) for each in SCHEDULERS),
    *(of_class("model.loss_function", "name", *each) for each in LOSSES),
    *(("model.mode", {"type": name}, "options", defaults) for name, defaults in RULES),
    *(("model", {"architecture": name, "mode": {"type": "fa"}}, "arguments", defaults) for name, defaults in OWN),
]


def others(default):
    """Values that differ from a default, among them those that say nothing."""
    return [value for value in (None, False, True, {}, 7.5, "other") if json.dumps(value) != json.dumps(default)]


@pytest.mark.parametrize(
    ("section", "given", "below", "defaults"),
    CASES,
    ids=[f"{case[0]}-{next(iter(case[1].values()))}" for case in CASES],
)
def test_every_argument_counts_and_its_default_may_be_told(section, given, below, defaults):
    def with_value(name, value):
        path = [section, below, name] if below else [section, name]
        return changed(tree(**{section.replace(".", "__"): given}), {".".join(path): value})

    plain = identity(tree(**{section.replace(".", "__"): given}))
    for name, default in defaults.items():
        if isinstance(default, tuple):
            default = list(default)  # as in a file  # noqa: PLW2901
        assert identity(with_value(name, default)) == plain, name
        for value in others(default):
            assert identity(with_value(name, value)) != plain, (name, value)


@pytest.mark.parametrize(
    ("section", "one", "other", "same"),
    [
        ("training.optimizer", {"type": "sgd", "lr": 1}, {"type": "SGD", "lr": 1.0, "weight_decay": 0.0}, True),
        ("training.optimizer", {"type": "Adam", "lr": 1}, {"type": "Adam", "lr": 1, "betas": [0.9, 0.999]}, True),
        ("training.optimizer", {"type": "Adam", "lr": 1}, {"type": "Adam", "lr": 1, "momentum": 0.9}, True),  # ignored
        ("training.lr_scheduler", {"type": "step_lr", "step_size": 2}, {"type": "StepLR", "step_size": 2}, True),
        ("training.lr_scheduler", {"type": "OneCycleLR", "max_lr": 1, "interval": "update"},
         {"type": "OneCycleLR", "max_lr": 1}, True),
        ("training.lr_scheduler", {"type": "StepLR", "step_size": 2},
         {"type": "StepLR", "step_size": 2, "interval": "update"}, False),
        ("training.lr_scheduler", None, {"type": "StepLR", "step_size": 2}, False),
        ("model.loss_function", {}, {"name": "CrossEntropyLoss", "label_smoothing": 0}, True),
        ("model.loss_function", {"name": "nll", "weight": [1, 2]}, {"name": "nll", "weight": [1.0, 2.0]}, True),
        ("model.mode", {"type": "fa", "layers": None}, {"type": "fa", "layers": {}}, True),
        ("model.mode", {"type": "fa", "layers": {"a": {"type": "dfa"}}},
         {"type": "fa", "layers": {"a": {"type": "dfa", "options": {"shortcuts": "keep"}}}}, True),
        ("model.mode", {"type": "fa", "layers": {"a": {"type": "dfa"}}},
         {"type": "fa", "layers": {"a": {"type": "dfa", "options": {"shortcuts": "cut"}}}}, False),
        ("model.mode", {"type": "my_rule", "options": {}}, {"type": "my_rule", "options": {"switch": False}}, False),
        ("model", {"architecture": "resnet18"}, {"architecture": "resnet18", "arguments": {"zero": False}}, False),
        ("data", {"dataset": "digits"}, {"dataset": "digits", "augment": False, "validation_size": 180}, True),
        ("data", {"dataset": "cifar10_benchmark"}, {"dataset": "cifar10_benchmark", "augment": True}, True),
        ("data", {"dataset": "cifar10_benchmark"}, {"dataset": "cifar10_benchmark", "augment": False}, False),
        ("data", {"dataset": "text:a.txt"}, {"dataset": "text:a.txt", "sequence_length": 128}, True),
        ("training.metrics", {}, {"display_iterations": 5, "top_k": 1, "weight_ratio": False}, True),
        ("training.metrics", {}, {"weight_ratio": True}, False),
        ("experiment", {"name": "a"}, {"name": "b", "seed": 0, "output_dir": "elsewhere"}, True),
        ("infrastructure", {}, {"channels_last": False}, False),
    ],
)  # fmt: skip
def test_equal_settings_and_only_those_are_one_run(section, one, other, same):
    first, second = (identity(tree(**{section.replace(".", "__"): each})) for each in (one, other))
    assert (first == second) == same


def test_a_study_counts_its_attacks():
    def of(**attacks):
        return text_of(what_counts_in_a_study(tree(attacks=attacks)))

    assert of() == text_of(what_counts_in_a_study(tree())) == of(images=500) != of(epsilons=[2 / 255, 8 / 255])
    assert of() == of(twin="elsewhere")
    for name in ATTACKS:
        assert of(attacks=[name]) == of(attacks=[{"type": name}]) != of(attacks=[{"type": name, "steps": 3}])
    assert of(attacks=["pgd"]) == of(attacks=[{"type": "pgd", "random_start": True}])
    assert of(attacks=["pgd"]) != of(attacks=[{"type": "pgd", "random_start": False}])
    assert len({of(), of(norm="l2"), of(seed=1), of(images=7), of(autoattack=True)}) == 5


def test_a_configuration_that_a_run_stores_is_complete():
    """Nothing that a checked configuration holds is unknown to the completion, and the other way round."""
    stored = Config.model_validate(QUICK).model_dump(mode="json")
    assert identity(stored) == identity(QUICK)
    assert Config.completed(stored) == Config.completed(QUICK)


ONE_CYCLE = (
    "training.lr_scheduler={type: OneCycleLR, max_lr: 0.05}",
    "training.optimizer={type: SGD, lr: 0.01, momentum: 0.9}",
)


def test_false_where_the_default_is_true_is_another_run(tmp_path):
    first = finish(tmp_path, *ONE_CYCLE)
    with pytest.raises(OtherRunError, match="cycle_momentum: True in the folder, False asked for"):
        finish(tmp_path, *ONE_CYCLE, "training.lr_scheduler.cycle_momentum=false")
    same = finish(tmp_path, *ONE_CYCLE, "training.lr_scheduler.cycle_momentum=true", "training.optimizer.dampening=0")
    assert same == first
