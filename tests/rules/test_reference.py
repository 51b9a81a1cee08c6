"""Every rule on every layer type does what the paper's equations say (`reference.py`), in float64."""

import contextlib
import importlib

import pytest
import reference
import torch
from cases import cases
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_names import TRAINING
from torch import nn

import biotorch
from biotorch.layers import is_feedback

pytestmark = pytest.mark.usefixtures("targets")

for library in ("huggingface", "timm"):
    with contextlib.suppress(ImportError):  # not installed: its layer types are not registered
        importlib.import_module(f"biotorch.layers.{library}")

RULES = biotorch.rules.available()
LAYERS = list(biotorch.layers.LAYER_TYPES)


def test_every_rule_has_a_reference():
    assert set(reference.RULES) == set(RULES)


def test_every_layer_type_has_a_reference():
    assert set(reference.LAYERS) == set(LAYERS)


def leaves(inputs):
    """A copy that requires gradients; where one tensor is given twice, its copy is, too."""
    copies = {}
    for x in inputs if isinstance(inputs, tuple) else (inputs,):
        copies.setdefault(id(x), x.clone().requires_grad_())
    return tuple(copies[id(x)] for x in inputs) if isinstance(inputs, tuple) else copies[id(inputs)]


def received(inputs, gradients):
    """What each tensor of the inputs received, summed over its uses."""
    totals = {}
    for x, gradient in zip(inputs, gradients, strict=True) if isinstance(inputs, tuple) else [(inputs, gradients)]:
        totals[x] = totals.get(x, 0) + gradient
    return totals


def assert_agrees(model, inputs, rule, **options):
    """Output, parameter gradients and input gradients of the converted model equal the reference's."""
    biotorch.convert(model, rule, seed=1, **options)
    inputs = leaves(inputs)
    output = model(inputs)
    output_gradient = torch.randn_like(output)
    output.backward(output_gradient)
    with torch.no_grad():
        expected = reference.run(
            model, inputs, output_gradient, rule, options.get("init", "xavier"), options.get("gradient_clip", False)
        )
    close = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(output.detach(), expected.output, **close)
    assert {name for name, _ in model.named_parameters()} == set(expected.gradients)
    for layer in model.modules():  # a B that learns by W's gradient; that of `dkp` has tests of its own
        for connection in getattr(layer, "connections", ()):
            for feedback in connection.learned if rule == "kp" else ():
                assert torch.equal(feedback.grad, layer.orient(connection.trained.grad))
    for name, parameter in model.named_parameters():
        if is_feedback(name):
            continue
        if not parameter.requires_grad:  # of the rule `shallow`
            assert parameter.grad is None
            continue
        torch.testing.assert_close(parameter.grad, expected.gradients[name], **close, msg=lambda m, n=name: f"{n}: {m}")
    for x, gradient in received(inputs, expected.input_gradient).items():
        torch.testing.assert_close(x.grad, gradient, **close, msg=lambda m: f"input: {m}")


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask and attn_mask:UserWarning")
@pytest.mark.parametrize("torch_type", LAYERS, ids=lambda t: t.__name__)
@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=20)
@given(data=st.data())
def test_a_layer_obeys_the_equation_of_its_rule(rule, torch_type, data):
    case = data.draw(cases(torch_type))
    init = data.draw(st.sampled_from(["xavier", "kaiming", "normal"]))
    assert_agrees(case.model, case.inputs, rule, init=init, gradient_clip=data.draw(st.booleans()))


def mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 7, bias=False), nn.Tanh(), nn.Linear(7, 5)
    )


def conv_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        nn.Tanh(),
        nn.ConvTranspose2d(6, 2, 2, stride=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(72, 8),
        nn.ReLU(),
        nn.Linear(8, 4),
    )


@pytest.mark.parametrize("gradient_clip", [False, True])
@pytest.mark.parametrize(("network", "size"), [(mlp, (6, 3, 4)), (conv_net, (3, 3, 6, 6))])
@pytest.mark.parametrize("rule", RULES)
def test_a_network_obeys_the_equation_of_its_rule(rule, network, size, gradient_clip):
    # Feedback of N(0, 1) makes gradients large enough for the clip to matter.
    model, x = network().double(), torch.randn(size, dtype=torch.float64)
    assert_agrees(model, x, rule, gradient_clip=gradient_clip, init="normal", copy_weights=False)


@pytest.mark.parametrize("rule", TRAINING)
def test_clipping_changes_the_gradients_of_these_networks(rule):
    """Without this the comparison under `gradient_clip=True` could pass with a clip that never acts."""
    gradients = []
    for clip in (False, True):
        torch.manual_seed(0)
        model, x = mlp().double(), torch.randn(6, 3, 4, dtype=torch.float64)
        biotorch.convert(model, rule, seed=1, gradient_clip=clip, init="normal", copy_weights=False)
        model(x).square().sum().backward()
        gradients.append(model[1].weight.grad)
    assert not torch.allclose(*gradients)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("rule", TRAINING)
def test_clipping_bounds_the_gradient_of_the_input_and_not_of_its_padded_copy(rule, mode):
    model = nn.Sequential(nn.Conv1d(2, 3, 3, padding=2, padding_mode=mode), nn.Tanh(), nn.Flatten(), nn.Linear(18, 4))
    x = torch.randn(2, 2, 4, dtype=torch.float64)
    assert_agrees(model.double(), x, rule, gradient_clip=True, init="normal", copy_weights=False)


@pytest.mark.parametrize("rule", ["fa", "dfa", "brsf", "frsf"])
@pytest.mark.parametrize(("init", "bound"), [("xavier", (6 / 500) ** 0.5), ("kaiming", 300**-0.5)])
def test_uniform_feedback_fills_the_initializer_s_range(rule, init, bound):
    layer = biotorch.convert(nn.Sequential(nn.Linear(300, 200), nn.Linear(200, 200)), rule, init=init)[0]
    low, high = layer.feedback.min().item(), layer.feedback.max().item()
    assert 0.99 * bound < high <= bound
    assert (-bound <= low < -0.99 * bound) if rule in {"fa", "dfa"} else (0 <= low < 0.01 * bound)


def test_feedback_init_concerns_b_alone():
    model = nn.Sequential(nn.Linear(300, 200))
    biotorch.convert(model, "fa", init="xavier", feedback_init="normal", copy_weights=False)
    assert model[0].weight.std().item() == pytest.approx((2 / 500) ** 0.5, rel=0.05)
    assert model[0].feedback.std().item() == pytest.approx(1, rel=0.05)


def test_feedback_init_weight_makes_fa_start_at_backpropagation():
    model = biotorch.convert(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)), "fa", feedback_init="weight")
    assert all(torch.equal(layer.feedback, layer.weight) for layer in model)
    assert model[0].feedback.data_ptr() != model[0].weight.data_ptr()
