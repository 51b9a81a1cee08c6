"""Inside `biotorch.true_gradients` every rule's network is the plain PyTorch network."""

import pytest
import torch
from rule_names import DIRECT, RULES, TRAINING
from torch import nn

import biotorch
from biotorch.testing import Net, assert_close, assert_identical, collect, gradients, images, loss_of, net

pytestmark = pytest.mark.usefixtures("targets")

every_rule = pytest.mark.parametrize("rule", RULES)
not_bp = pytest.mark.parametrize("rule", [rule for rule in TRAINING if rule not in ("backpropagation", "sham")])


def plain() -> Net:
    torch.manual_seed(7)
    return Net()


def differs(found, expected) -> bool:
    return not torch.allclose(found["features.0.weight"], expected["features.0.weight"], rtol=1e-2)


@pytest.mark.parametrize("rule", TRAINING)
def test_the_gradients_are_those_of_plain_pytorch(rule):
    model, x, x_plain = net(rule), images().requires_grad_(), images().requires_grad_()
    with biotorch.true_gradients(model):
        found = gradients(model, x)
    assert_close(found, gradients(plain(), x_plain), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad, x_plain.grad, rtol=1e-5, atol=1e-5)


@not_bp
def test_the_rule_itself_gives_others(rule):
    assert differs(gradients(net(rule), images()), gradients(plain(), images()))


@every_rule
def test_leaving_restores_the_rule_to_the_bit(rule):
    model = net(rule)
    expected = gradients(model, images())
    with biotorch.true_gradients(model):
        gradients(model, images())
    assert_identical(gradients(model, images()), expected)


@every_rule
def test_an_exception_restores_the_rule_too(rule):
    model = net(rule)
    expected = gradients(model, images())
    with pytest.raises(KeyError), biotorch.true_gradients(model):
        raise KeyError
    assert_identical(gradients(model, images()), expected)


@pytest.mark.parametrize("rule", TRAINING)
def test_nested_use_ends_with_the_outermost(rule):
    model = net(rule)
    expected, true = gradients(model, images()), gradients(plain(), images())
    with biotorch.true_gradients(model):
        with biotorch.true_gradients(model):
            pass
        found = gradients(model, images())
    assert_close(found, true, rtol=1e-5, atol=1e-5)
    assert_identical(gradients(model, images()), expected)


@pytest.mark.parametrize("rule", TRAINING)
def test_the_forward_decides_where_the_backward_runs_after_leaving(rule):
    model = net(rule)
    with biotorch.true_gradients(model):
        loss = loss_of(model(images()))
    loss.backward()
    assert_close(collect(model), gradients(plain(), images()), rtol=1e-5, atol=1e-5)


@every_rule
def test_the_forward_decides_where_the_backward_runs_inside(rule):
    model = net(rule)
    expected = gradients(model, images())
    loss = loss_of(model(images()))
    with biotorch.true_gradients(model):
        loss.backward()
    assert_identical(collect(model), expected)


@not_bp
def test_a_part_of_the_model_may_be_true(rule):
    """The head's own gradient is true under every rule; through a true head W reaches the features' last layer."""
    model, true = net(rule), gradients(plain(), images())
    if biotorch.rules.get(rule).direct:
        with pytest.raises(RuntimeError, match="output layer"), biotorch.true_gradients(model.head):
            gradients(model, images())
        return
    with biotorch.true_gradients(model.head):
        found = gradients(model, images())
    torch.testing.assert_close(found["features.5.weight"], true["features.5.weight"], rtol=1e-5, atol=1e-5)
    assert differs(found, true)


@pytest.mark.parametrize("rule", DIRECT)
def test_cut_shortcuts_are_whole_again(rule):
    found = []
    for options in ({}, {"shortcuts": "cut"}):
        torch.manual_seed(0)
        model = biotorch.convert(biotorch.models.build("resnet20").eval(), rule, **options)
        with biotorch.true_gradients(model):
            found.append(gradients(model, torch.ones(2, 3, 32, 32)))
    assert_identical(*found)


@every_rule
def test_a_single_layer_may_be_the_model(rule):
    layer = biotorch.convert(nn.Linear(4, 3), rule)
    x = torch.ones(2, 4, requires_grad=True)
    with biotorch.true_gradients(layer):
        layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.detach().sum(0).expand(2, 4))
