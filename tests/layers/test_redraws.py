"""A B that no backward pass uses is drawn only when somebody reads it, and then as if it had been drawn every time."""

import copy

import pytest
import torch
from torch import nn

import biotorch
from biotorch.rules import initial


@pytest.fixture
def drawn(monkeypatch):
    """The shapes of the magnitudes that are drawn."""
    shapes, draw = [], initial.draw_magnitudes

    def noted(tensor, *arguments):
        shapes.append(tuple(tensor.shape))
        return draw(tensor, *arguments)

    monkeypatch.setattr(initial, "draw_magnitudes", noted)
    return shapes


def network(**options):
    torch.manual_seed(0)
    return biotorch.convert(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)), "brsf", seed=1, **options)


def train(model, steps, x):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("options", [{}, {"constrain_weights": True}])
def test_the_first_layer_draws_when_it_is_read_and_to_the_same_values(drawn, options):
    x = torch.randn(3, 6)
    lazy, eager = train(network(**options), 4, x), train(network(**options), 4, x.clone().requires_grad_())
    if not options:  # else reading W, whose norm is kept, settles B, too
        assert drawn == [(4, 5)] * 3 + [(5, 6), (4, 5)] * 3  # the fourth update is settled at the next use
    assert torch.equal(lazy[0].feedback, eager[0].feedback)
    assert torch.equal(lazy[0].weight, eager[0].weight)
    assert lazy[0].feedback_draws == eager[0].feedback_draws == 4
    lazy_state, eager_state = lazy.state_dict(), eager.state_dict()
    assert all(torch.equal(lazy_state[name], eager_state[name]) for name in eager_state)


def test_an_input_that_needs_a_gradient_gets_the_newest_b():
    x, probe = torch.randn(3, 6), torch.randn(3, 6, requires_grad=True)
    lazy, eager = train(network(), 3, x), train(network(), 3, x.clone().requires_grad_())
    gradients = [torch.autograd.grad(model(probe).sum(), probe)[0] for model in (lazy, eager)]
    assert torch.equal(*gradients)


def test_b_may_be_read_between_forward_and_backward():
    x = torch.randn(3, 6)
    model = train(network(), 2, x)
    loss = model(x).square().sum()
    before = model[0].feedback.clone()
    loss.backward()
    assert torch.equal(model[0].feedback, before)


def test_a_copy_and_a_saved_state_have_the_newest_b():
    x = torch.randn(3, 6)
    model, eager = train(network(), 3, x), train(network(), 3, x.clone().requires_grad_())
    model(x)  # settles the third update without a draw
    twin, loaded = copy.deepcopy(model), network()
    loaded.load_state_dict(model.state_dict())
    expected = eager[0].feedback
    assert all(torch.equal(each[0].feedback, expected) for each in (twin, loaded, model))
