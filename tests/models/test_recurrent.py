"""`lstm` and `gru`: what the head reads, the shapes that they take, and what they learn under the rules."""

from __future__ import annotations

import itertools

import pytest
import torch
from networks import batch, gradients, labels
from numbers_cases import sequences
from rule_names import RULES, one_per_path, without_decay
from torch import nn

import biotorch
from biotorch import models
from biotorch.auditing import audit
from biotorch.training import LossConfig, Trainer, TrainingConfig

KINDS = {"lstm": nn.LSTM, "gru": nn.GRU}
every_kind = pytest.mark.parametrize("kind", KINDS)


def numbers(n: int = 4, steps: int = 5) -> torch.Tensor:
    return batch(n, steps * 3).view(n, steps, 3)


@every_kind
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("rule", ["backpropagation", "fa"])
def test_the_head_reads_the_states_of_torchs_layer(kind, bidirectional, rule):
    """The last state of each direction: the backward one ends at the first step. Or the states of every step."""
    arguments = {"hidden_size": 6, "num_layers": 2, "bidirectional": bidirectional}
    plain = KINDS[kind](3, 6, 2, batch_first=True, bidirectional=bidirectional)
    for per_step in (False, True):
        model = models.build(kind, 4, input_shape=(5, 3), per_step=per_step, **arguments)
        plain.load_state_dict(model.recurrent.state_dict())
        states, _ = plain(numbers())
        forward, backward = states[:, -1, :6], states[:, 0, 6:]
        expected = model.head(states if per_step else torch.cat([forward, backward], 1))
        output = biotorch.convert(model, rule, copy_weights=True)(numbers())
        assert output.shape == ((4, 5, 4) if per_step else (4, 4))
        torch.testing.assert_close(output, expected)


@every_kind
def test_tokens_are_embedded_and_answered_step_by_step(kind):
    model = models.build(kind, 11, input_shape=(7,), hidden_size=6)
    assert model(torch.arange(14).view(2, 7) % 11).shape == (2, 7, 11)
    assert model.embedding.weight.shape == (11, 6)
    assert models.build(kind, 11, input_shape=(7,), per_step=False)(torch.zeros(2, 7, dtype=torch.long)).shape == (
        2,
        11,
    )


def test_dropout_lies_between_the_layers_and_in_front_of_the_head():
    model = models.build("gru", 4, input_shape=(5, 3), num_layers=2, dropout=0.3)
    assert (model.recurrent.dropout, model.dropout.p) == (0.3, 0.3)
    assert models.build("gru", 4, input_shape=(5, 3), dropout=0.3).recurrent.dropout == 0  # torch would warn


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_size": 0}, "hidden_size of 'lstm' must be a positive integer, not 0"),
        ({"dropout": -1}, "dropout of 'lstm'.*-1"),
        ({"hidden": 3}, "argument of 'lstm' 'hidden'.*'hidden_size'"),
        ({"features": 4, "input_shape": (5, 3)}, r"features=4 .*\(5, 3\)"),
        (
            {"input_shape": (3, 4, 4)},
            r"take sequences \(T, features\) or tokens \(T,\), not examples of shape \(3, 4, 4\)",
        ),
    ],
)
def test_wrong_arguments_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.build("lstm", **arguments)


@pytest.mark.parametrize(
    ("kind", "per_step", "rule"),
    [
        pytest.param(*case, marks=[] if case in (("lstm", True, "fa"), ("gru", False, "dfa")) else pytest.mark.slow)
        for case in itertools.product(KINDS, (False, True), ("backpropagation", "fa", "dfa", "brsf"))
    ],
)
def test_they_remember_what_has_gone_by(kind, per_step, rule):
    """The sign of a running sum; the last step alone gives it in 65 % of the cases."""
    data = sequences(per_step, examples=400)
    model = models.build(kind, 2, input_shape=data.input_shape, hidden_size=12, per_step=per_step)
    section = {"hyperparameters": {"epochs": 12, "batch_size": 20}, "optimizer": {"type": "Adam", "lr": 0.01}}
    trainer = Trainer(
        biotorch.convert(model, rule, seed=1),
        data,
        TrainingConfig.model_validate(section),
        LossConfig().build(),
        seed=1,
    )
    trainer.run()
    assert min(record["validation"]["error"] for record in trainer.history) < 20


@pytest.mark.usefixtures("targets")
@without_decay
@pytest.mark.parametrize("rule", one_per_path(RULES))
def test_nothing_is_transported_that_the_rule_does_not_declare(rule):
    model = biotorch.convert(models.build("gru", 3, input_shape=(5, 3), hidden_size=6), rule, seed=1)
    assert gradients(model, numbers(), labels())["head.weight"].any()
    found = audit(model, numbers())
    declared = {"nothing": 0, "signs": 0.5, "weights": 1}[biotorch.rules.get(rule).transports]
    assert found.leak == pytest.approx(declared)
