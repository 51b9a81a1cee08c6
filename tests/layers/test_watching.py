"""Updates are seen by counted gradients and steps; writes that cannot be seen are told."""

import gc

import pytest
import torch
from followed_feedback import RATE, backward, by_hand, following, network
from networks import batch, labels
from torch import nn
from torch.nn import functional as F

import biotorch
from biotorch.testing import assert_identical

# What cannot be seen -----------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["brsf", "wm"])
def test_writes_that_nobody_can_see_are_told_within_ten_steps(rule):
    model, done = network(rule), []

    def train(steps: int) -> None:
        for number in range(steps):
            model.zero_grad()
            backward(model, number)
            for parameter in model.parameters():
                parameter.data.sub_(RATE * parameter.grad)
            done.append(number)

    with pytest.raises(RuntimeError, match=r"^0: its weight changes in a way that cannot be seen.*biotorch\.updated"):
        train(10)
    assert len(done) < 10


@following
def test_layers_that_nobody_trains_cost_no_walk_over_all_objects(rule, monkeypatch):
    model = network(rule)
    optimizer = torch.optim.SGD(model[-1].parameters(), lr=RATE)
    backward(model, 0)
    optimizer.step()
    walks = []
    monkeypatch.setattr(gc, "get_objects", lambda: walks.append(1) or [])
    for number in range(20):
        model.zero_grad()
        backward(model, number)
        optimizer.step()
    assert not walks


def accumulating(model):
    backward(model, 0)


def standing_still(model):
    model.zero_grad()
    backward(model, 0)
    torch.optim.SGD(model.parameters(), lr=0.0).step()


def frozen(model):
    for layer in (model[0], model[2], model[4]):
        layer.weight.requires_grad_(False)
    backward(model, 0)


@pytest.mark.parametrize("way", [accumulating, standing_still, frozen])
def test_micro_batches_a_rate_of_zero_and_frozen_weights_raise_nothing(way):
    model = network("brsf")
    for _ in range(34):
        way(model)


# Whose steps count -------------------------------------------------------------------------------


@following
def test_an_optimizer_that_is_gone_holds_nothing(rule):
    model = network(rule)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for number in range(2):
        model.zero_grad()
        backward(model, number)
        optimizer.step()
    del optimizer
    gc.collect()
    for number in range(3):
        model.zero_grad()
        backward(model, number)
        by_hand(model)()
    assert model[2].feedback_draws == 5


@following
def test_an_optimizer_that_is_not_in_use_is_found_out(rule):
    model = network(rule)
    unused = torch.optim.SGD(model.parameters(), lr=RATE)
    seen = []
    for number in range(6):
        model.zero_grad()
        backward(model, number)
        by_hand(model)()
        seen.append(model[2].feedback_draws)
    assert seen == [0, 0, 3, 4, 5, 6]
    assert unused.param_groups


@following
def test_steps_by_gradients_that_are_handed_over_count_and_empty_ones_do_not(rule):
    class Handed(torch.optim.Optimizer):
        def __init__(self, parameters):
            super().__init__(parameters, {})

        @torch.no_grad()
        def step(self, gradients):
            for parameter, gradient in zip(self.param_groups[0]["params"], gradients, strict=True):
                parameter.sub_(RATE * gradient)

    model = network(rule)
    parameters = list(model.parameters())
    optimizer, other = Handed(parameters), torch.optim.SGD(parameters, lr=RATE)
    for number in range(3):
        loss = F.cross_entropy(model(batch().double() + number), labels())
        optimizer.step(torch.autograd.grad(loss, parameters))
    assert model[2].feedback_draws == 3
    backward(model, 0)
    model.zero_grad()
    other.step()
    assert model[2].feedback_draws == 3


@pytest.mark.parametrize("rule", ["sa", "wm", "ia"])
def test_an_average_that_is_swapped_in_for_evaluation_is_not_followed(rule):
    model, plain = network(rule), network(rule)
    optimizers = [torch.optim.SGD(each.parameters(), lr=RATE) for each in (model, plain)]
    average = [parameter.detach() * 3 for parameter in model.parameters()]
    for number in range(3):
        for each, optimizer in zip((model, plain), optimizers, strict=True):
            optimizer.zero_grad()
            backward(each, number)
            optimizer.step()
        with torch.no_grad():
            before = [parameter.clone() for parameter in model.parameters()]
            for values in (average, before):
                for parameter, value in zip(model.parameters(), values, strict=True):
                    parameter.copy_(value)
                model.eval()(batch().double())
            model.train()
    assert_identical(model.state_dict(), plain.state_dict())


# Large layers ------------------------------------------------------------------------------------


def test_contents_of_large_layers_are_compared_everywhere():
    """Of pictures with a border every fourth column may learn nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = biotorch.convert(nn.Sequential(nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 2)), "brsf", seed=1)
    images = torch.zeros(8, 28, 28)
    images[:, 4:24, 4:24] = 1

    def train() -> None:
        for _ in range(10):
            model.zero_grad()
            model(images.flatten(1)).square().sum().backward()
            for parameter in model.parameters():
                parameter.data.sub_(1e-4 * parameter.grad)

    with pytest.raises(RuntimeError, match="cannot be seen"):
        train()
