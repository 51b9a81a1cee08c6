"""constrain_weights: after every step W has the norm it started with, and it is still the W that trains."""

import copy

import pytest
import torch
from rule_names import TRAINING, without_decay
from torch import nn

import biotorch
from biotorch.testing import LAYER_NAMES, images, loss_of, net

pytestmark = [pytest.mark.parametrize("rule", TRAINING), pytest.mark.usefixtures("targets"), without_decay]


def norms(model) -> torch.Tensor:
    return torch.stack([model.get_submodule(name).weight.detach().norm() for name in LAYER_NAMES])


def train(model, steps: int = 3, lr: float = 0.05) -> list[float]:
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=lr), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model(images())) / 5
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_the_norm_returns_to_its_initial_value_after_each_step(rule):
    model = net(rule, constrain_weights=True)
    initial = norms(model)
    for _ in range(3):
        train(model, steps=1)
        torch.testing.assert_close(norms(model), initial)


def test_without_it_the_norm_moves(rule):
    model = net(rule)
    initial = norms(model)
    train(model, steps=4)
    assert ((norms(model) - initial).abs() > 1e-4).all()


def test_the_optimizer_trains_the_live_parameter(rule):
    """The first system put a new Parameter in its place at every forward: the optimizer kept a dead one."""
    model = net(rule, constrain_weights=True)
    parameters = dict(model.named_parameters())
    before = {name: p.detach().clone() for name, p in parameters.items()}
    train(model)
    for name, p in model.named_parameters():
        assert p is parameters[name]
        assert not torch.equal(p, before[name]), name


def test_the_direction_of_w_is_that_of_the_unconstrained_step(rule):
    free, bound = net(rule), net(rule, constrain_weights=True)
    for model in (free, bound):
        train(model, steps=1)
    for name in LAYER_NAMES:
        a, b = (model.get_submodule(name).weight.detach().flatten() for model in (free, bound))
        torch.testing.assert_close(a / a.norm(), b / b.norm())


def test_biases_are_left_alone(rule):
    free, bound = net(rule), net(rule, constrain_weights=True)
    for model in (free, bound):
        train(model, steps=1)
    for name in LAYER_NAMES:
        assert torch.equal(free.get_submodule(name).bias, bound.get_submodule(name).bias)


def test_a_constrained_model_learns(rule):
    if rule == "drtp":
        pytest.skip("it learns targets, and those of these tests are not this loss's")
    losses = train(net(rule, constrain_weights=True), steps=60, lr=0.02)
    assert losses[-1] < losses[0] - 0.05


def test_a_copy_is_held_to_the_norm_too(rule):
    model = copy.deepcopy(net(rule, constrain_weights=True))
    initial = norms(model)
    train(model)
    torch.testing.assert_close(norms(model), initial)


def test_a_loaded_state_brings_its_norm(rule):
    model = net(rule, constrain_weights=True)
    other = net(rule, constrain_weights=True)
    biotorch.convert(other, rule, init="normal", copy_weights=False, constrain_weights=True)
    other.load_state_dict(model.state_dict())
    initial = norms(model)
    train(other)
    torch.testing.assert_close(norms(other), initial)


def test_a_weight_that_is_all_zero_stays_finite(rule):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    nn.init.zeros_(model[0].weight)
    biotorch.convert(model, rule, constrain_weights=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    assert model[0].weight.isfinite().all()


def test_a_skipped_fused_step_rescales_nothing(rule):
    model = net(rule, constrain_weights=True)
    with torch.no_grad():
        model.head.weight.mul_(2)
    before = model.head.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, fused=True)
    loss_of(model(images())).backward()
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(1.0)
    optimizer.step()
    assert torch.equal(model.head.weight, before)
