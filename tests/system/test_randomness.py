"""Feedback has its own randomness: the global generator is never touched, and every rule starts from the same W."""

import random

import numpy as np
import pytest
import torch
from rule_names import TRAINING, without_decay

import biotorch
from biotorch.testing import LAYER_NAMES, Net, images, loss_of, net

pytestmark = pytest.mark.usefixtures("targets")

every_rule = pytest.mark.parametrize("rule", TRAINING)


def weights(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same_weights(models) -> bool:
    first, *others = (weights(model) for model in models)
    return all(torch.equal(value, other[name]) for other in others for name, value in first.items())


@every_rule
@pytest.mark.parametrize("copy_weights", [True, False])
@pytest.mark.parametrize("seed", [None, 5])
def test_conversion_leaves_every_global_generator_alone(rule, copy_weights, seed):
    model = Net()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    biotorch.convert(model, rule, copy_weights=copy_weights, seed=seed)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]


@without_decay
@every_rule
def test_training_leaves_the_global_generator_alone(rule):
    model = net(rule, constrain_weights=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = images()
    before = torch.get_rng_state()
    for _ in range(2):
        loss_of(model(x)).backward()
        optimizer.step()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("copy_weights", [True, False])
def test_every_rule_starts_from_the_same_w(copy_weights):
    models = []
    for rule in TRAINING:
        torch.manual_seed(11)
        models.append(biotorch.convert(Net(), rule, copy_weights=copy_weights))
    assert same_weights(models)


def test_every_rule_sees_the_same_randomness_after_its_model_is_built():
    draws = []
    for rule in TRAINING:
        torch.manual_seed(11)
        biotorch.convert(Net(), rule, copy_weights=False)
        draws.append(torch.rand(3))
    assert all(torch.equal(draw, draws[0]) for draw in draws)


def test_layers_built_one_by_one_start_from_the_same_w_under_every_rule():
    models = []
    for rule in TRAINING:
        torch.manual_seed(11)
        models.append(torch.nn.Sequential(*(biotorch.layers.Linear(6, 6, rule=rule, output_dim=6) for _ in range(2))))
    assert same_weights(models)
    assert not torch.equal(models[0][0].weight, models[0][1].weight)


@every_rule
def test_kept_weights_are_kept_to_the_bit(rule):
    torch.manual_seed(11)
    plain = Net()
    expected = weights(plain)
    converted = weights(biotorch.convert(plain, rule))
    assert all(torch.equal(converted[name], value) for name, value in expected.items())


@every_rule
def test_the_seed_decides_w_and_b(rule):
    def state(seed):
        return biotorch.convert(Net(), rule, copy_weights=False, seed=seed).state_dict()

    first, again, other = state(5), state(5), state(6)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])
    if rule in {"fa", "dfa", "brsf", "frsf"}:
        assert not torch.equal(first["head.feedback"], other["head.feedback"])


@every_rule
def test_the_global_seed_decides_where_none_is_given(rule):
    states = []
    for seed, extra in ((5, 0), (5, 7), (6, 0)):
        torch.manual_seed(seed)
        model = Net()
        torch.rand(extra)  # what else was drawn in between does not matter
        states.append(biotorch.convert(model, rule, copy_weights=False).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["head.weight"], states[2]["head.weight"])


@pytest.mark.parametrize("rule", ["fa", "dfa", "brsf", "frsf"])
def test_layers_of_equal_shape_get_different_feedback(rule):
    model = torch.nn.Sequential(*(torch.nn.Linear(6, 6) for _ in range(3)))
    biotorch.convert(model, rule)
    values = [layer.feedback for layer in model]
    assert not any(torch.equal(a, b) for i, a in enumerate(values) for b in values[:i])


@pytest.mark.parametrize("rule", ["fa", "brsf", "frsf"])
def test_b_is_independent_of_w(rule):
    """Drawn from one stream, B would repeat W under the same seed, and FA would be backpropagation."""
    model = biotorch.convert(torch.nn.Sequential(torch.nn.Linear(200, 200)), rule, copy_weights=False, seed=5)
    w, b = model[0].weight.detach().flatten(), model[0].feedback.flatten()
    w = w if rule == "fa" else w.abs()
    assert torch.corrcoef(torch.stack([w, b]))[0, 1].abs() < 0.03


@every_rule
def test_the_feedback_is_that_of_every_type_and_layout(rule):
    torch.manual_seed(7)
    expected = net(rule).state_dict()
    torch.manual_seed(7)
    model = Net().double().to(memory_format=torch.channels_last)
    biotorch.convert(model, rule, seed=3)
    for name in LAYER_NAMES:
        if f"{name}.feedback" in expected:
            found = model.get_submodule(name).feedback
            assert found.dtype == torch.float64
            torch.testing.assert_close(found.float(), expected[f"{name}.feedback"])
