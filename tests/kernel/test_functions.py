"""Conformance of every rule, one forward and one backward: types, layouts, frozen weights, bad use."""

import copy

import pytest
import torch
from rule_names import TRAINING
from torch import nn

import biotorch
from biotorch.testing import (
    LAYER_NAMES,
    Net,
    assert_all_learn,
    assert_close,
    assert_identical,
    collect,
    gradients,
    images,
    loss_of,
    net,
)

pytestmark = [pytest.mark.parametrize("rule", TRAINING), pytest.mark.usefixtures("targets")]


def test_every_parameter_learns(rule):
    model = net(rule)
    assert_all_learn(gradients(model, images()), model)


def test_float64_keeps_its_precision(rule):
    model = net(rule).double()
    found = gradients(model, images().double())
    assert {gradient.dtype for gradient in found.values()} == {torch.float64}
    assert_close(
        {name: gradient.float() for name, gradient in found.items()},
        gradients(net(rule), images()),
        rtol=1e-3,
        atol=1e-4,
    )


@pytest.mark.parametrize("backward_inside", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_autocast_gives_the_gradients_to_its_precision(rule, dtype, tolerance, backward_inside):
    model = net(rule)
    with torch.autocast("cpu", dtype):
        output = model(images())
        loss = loss_of(output.float())
        if backward_inside:
            loss.backward()
    if not backward_inside:
        loss.backward()
    assert output.dtype == dtype
    found = collect(model)
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    for name, expected in gradients(net(rule), images()).items():
        error = (found[name] - expected).norm() / expected.norm()
        assert 0 < error < tolerance, name  # 0: autocast had no effect


def test_autocast_leaves_float64_alone(rule):
    model = net(rule).double()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(images().double())
    assert output.dtype == torch.float64
    loss_of(output).backward()
    assert_identical(collect(model), gradients(model, images().double()))


def test_channels_last_gives_the_same_gradients(rule):
    x = images().requires_grad_()
    expected = gradients(net(rule), x)
    expected["x"] = x.grad
    model = net(rule).to(memory_format=torch.channels_last)
    last = images().to(memory_format=torch.channels_last).requires_grad_()
    outputs = []
    model.features[2].register_forward_hook(lambda module, args, output: outputs.append(output))
    found = gradients(model, last)
    found["x"] = last.grad
    assert outputs[0].is_contiguous(memory_format=torch.channels_last)
    assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_gradients_accumulate_to_those_of_the_whole_batch(rule):
    model = net(rule)
    for half in images(8).split([3, 5]):
        loss_of(model(half)).backward()
    assert_close(collect(model), gradients(net(rule), images(8)), rtol=1e-4, atol=1e-5)


def test_a_batch_of_one_gives_its_share_of_the_batch(rule):
    if rule == "drtp":
        pytest.skip("the targets of these tests go by the place in the batch")
    x = images(2)
    first, second = (gradients(net(rule), example) for example in x.split(1))
    whole = gradients(net(rule), x)
    assert_close({name: first[name] + second[name] for name in whole}, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_output_is_that_of_training(rule, context):
    model = net(rule)
    expected = model(images())
    with context():
        output = model(images())
    assert expected.requires_grad
    assert not output.requires_grad
    assert torch.equal(output, expected)


def test_the_forward_is_that_of_plain_pytorch(rule):
    torch.manual_seed(7)
    assert torch.equal(net(rule)(images()), Net()(images()))


def test_activations_in_place_change_nothing(rule):
    assert_identical(gradients(net(rule, inplace=True), images()), gradients(net(rule), images()))


@pytest.mark.parametrize("size", [(4, 3, 6), (2, 2, 3, 6), (6,)])
def test_a_linear_layer_of_any_leading_dimensions_takes_an_activation_in_place(rule, size):
    found = []
    for inplace in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace), nn.Linear(5, 4), nn.ReLU(inplace), nn.Linear(4, 1))
        found.append(gradients(biotorch.convert(model, rule), torch.ones(size)))
    assert_identical(*found)


@pytest.mark.parametrize("frozen", LAYER_NAMES)
@pytest.mark.parametrize("needs_input_gradient", [False, True])
def test_a_frozen_layer_leaves_the_others_gradients_as_they_are(rule, frozen, needs_input_gradient):
    model = net(rule)
    expected = gradients(model, images())
    model.get_submodule(frozen).requires_grad_(False)
    found = gradients(model, images().requires_grad_(needs_input_gradient))
    assert_identical(found, {name: value for name, value in expected.items() if not name.startswith(f"{frozen}.")})


@pytest.mark.parametrize("parameter", ["weight", "bias"])
def test_half_a_layer_may_be_frozen(rule, parameter):
    model = net(rule)
    expected = gradients(model, images())
    frozen = f"features.2.{parameter}"
    model.get_parameter(frozen).requires_grad_(False)
    left_out = {frozen, "features.2.feedback"} if parameter == "weight" else {frozen}  # a frozen W freezes its B
    assert_identical(
        gradients(model, images()), {name: value for name, value in expected.items() if name not in left_out}
    )


def test_features_may_be_frozen_altogether(rule):
    model = net(rule)
    expected = gradients(model, images())
    model.features.requires_grad_(False)
    found = gradients(model, images())
    assert_identical(found, {name: value for name, value in expected.items() if name.startswith("head.")})


def test_whether_the_input_asks_for_a_gradient_changes_no_parameter_s(rule):
    model = net(rule)
    expected = gradients(model, images())
    x = images().requires_grad_()
    assert_identical(gradients(model, x), expected)
    assert x.grad.abs().sum() > 0


def test_double_backward_names_the_way_out(rule):
    model, x = net(rule), images().requires_grad_()
    with pytest.raises(RuntimeError, match="true_gradients"):
        torch.autograd.grad(loss_of(model(x)), x, create_graph=True)


def test_double_backward_through_true_gradients_is_that_of_plain_pytorch(rule):
    torch.manual_seed(7)
    found = []
    for model in (Net(), net(rule)):
        x = images().requires_grad_()
        with biotorch.true_gradients(model):
            (gradient,) = torch.autograd.grad(loss_of(model(x)), x, create_graph=True)
        gradient.square().sum().backward()
        found.append({"x": x.grad, **collect(model)})
    assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_an_integer_input_is_a_type_error_that_names_layer_and_type(rule, dtype):
    model = net(rule)
    with pytest.raises(TypeError, match=r"features\.0.*torch\." + str(dtype).split(".")[1]):
        model(torch.ones(2, 2, 8, 8, dtype=dtype))


@pytest.mark.parametrize("layer", LAYER_NAMES[1:])
def test_a_weight_changed_between_forward_and_backward_raises(rule, layer):
    model = net(rule)
    loss = loss_of(model(images()))
    with torch.no_grad():
        model.get_submodule(layer).weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("autocast", [False, True])
def test_a_step_between_forward_and_backward_raises(rule, autocast):
    model = net(rule)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        first, second = (loss_of(model(images(seed=seed)).float()) for seed in (0, 1))
    first.backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        second.backward()


def test_eval_mode_with_gradients_uses_the_current_batch(rule):
    """The first system's DFA kept the last training batch's error: attacks on it met a stale gradient."""
    model, x = net(rule), images(seed=1).requires_grad_()
    gradients(model, images(seed=0))
    (after_training,) = torch.autograd.grad(loss_of(model.eval()(x)), x)
    (fresh,) = torch.autograd.grad(loss_of(net(rule).eval()(x)), x)
    assert torch.equal(after_training, fresh)


def test_the_layers_share_nothing_between_models(rule):
    """Two models of the same rule in one graph's lifetime do not meet."""
    first, second = net(rule), copy.deepcopy(net(rule))
    expected = gradients(net(rule), images())
    losses = [loss_of(model(images())) for model in (first, second)]
    sum(losses).backward()
    assert_identical(collect(first), expected)
    assert_identical(collect(second), expected)
