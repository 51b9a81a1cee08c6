"""The first system's wrong results (REFERENCE.md, section 3): one test each, so that none comes back."""

from __future__ import annotations

import copy
import importlib
import math

import pytest
import torch
from networks import BY_ERROR, TRAINING, batch, gradients, images, labels, mlp
from rule_names import without_decay
from torch import nn
from torch.nn import functional as F

import biotorch
from biotorch.layers import FeedbackLayer
from biotorch.metrics import alignment_angles, angle, norm_ratios

pytestmark = pytest.mark.usefixtures("targets")


def train_step(model: nn.Module, x: torch.Tensor, y: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


def input_gradient(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(model(x), y), x)[0]


def convolutions() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3)
    )


# constrain_weights ---------------------------------------------------------------------------------


@without_decay
@pytest.mark.parametrize("optimizer_type", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("rule", TRAINING)
def test_constrain_weights_trains_the_live_parameter_at_its_initial_norm(rule, optimizer_type):
    # The first system put a new Parameter into the layer at each forward; the optimizer kept the old one.
    model = mlp()
    optimizer = optimizer_type(model.parameters(), 0.05)
    parameters = dict(model.named_parameters())
    biotorch.convert(model, rule, constrain_weights=True)
    if biotorch.rules.get(rule).learns:
        optimizer.add_param_group({"params": biotorch.feedback_parameters(model)})
    norms = {name: p.norm().item() for name, p in parameters.items() if p.dim() > 1}
    before, logits = {name: p.detach().clone() for name, p in parameters.items()}, model(batch())
    for _ in range(3):
        train_step(model, batch(), labels(), optimizer)
    assert not torch.allclose(model(batch()), logits, rtol=1e-3)  # where the last update is settled
    found = {name: id(p) for name, p in model.named_parameters() if "feedback" not in name}
    assert found == {name: id(p) for name, p in parameters.items()}
    for name, norm in norms.items():
        assert parameters[name].norm().item() == pytest.approx(norm, rel=1e-5)
        assert not torch.allclose(parameters[name], before[name], rtol=1e-4), name
    assert model(batch()).grad_fn is not None


# DFA -----------------------------------------------------------------------------------------------


def test_dfa_in_eval_mode_projects_the_error_of_the_current_batch():
    # The first system kept the last training batch's error: white-box attacks saw another batch's gradient.
    model = biotorch.convert(convolutions(), "dfa")
    fresh = copy.deepcopy(model).eval()
    x, y = images(2, size=8), labels(2)
    F.cross_entropy(model(5 * torch.randn(7, 3, 8, 8)), labels(7)).backward()
    found = input_gradient(model.eval(), x, y)
    assert found.any()
    assert torch.equal(found, input_gradient(fresh, x, y))
    assert not torch.equal(found, input_gradient(model, x, (y + 1) % 3))


def test_dfa_runs_through_grouped_convolutions():
    layer = nn.Conv2d(4, 6, 3, groups=2, padding=1, stride=2)
    model = biotorch.convert(nn.Sequential(layer, nn.Flatten(), nn.Linear(54, 3)), "dfa")
    x = images(2, channels=4, size=6).requires_grad_()
    model(x).square().sum().backward()
    assert layer.feedback.shape == (3, 4, 3, 3)  # the projection is not grouped: every channel hears the error
    error = (2 * model(x)).detach()[:, :, None, None].expand(2, 3, 3, 3)  # constant over the 3 x 3 outputs
    expected = F.conv_transpose2d(error, layer.feedback, stride=2, padding=1, output_padding=1)
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize("rule", BY_ERROR)
def test_two_halves_of_a_batch_give_the_gradient_of_the_whole(rule):
    # DataParallel in the first system scaled DFA's gradients by the number of devices.
    model = biotorch.convert(convolutions(), rule)
    x, y = images(4, size=8), labels(4)
    whole = gradients(model, x, y)
    halves = torch.cat([model(x[:2]), model(x[2:])])  # two replicas' forwards, one loss, one backward
    F.cross_entropy(halves, y).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, whole[name], rtol=1e-4, atol=1e-6)
    model.zero_grad()
    for part in (slice(0, 2), slice(2, 4)):  # and two processes that average, or gradient accumulation
        (F.cross_entropy(model(x[part]), y[part]) / 2).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, whole[name], rtol=1e-4, atol=1e-6)


# Sign rules ----------------------------------------------------------------------------------------


def test_brsf_redraws_after_an_update_and_never_in_a_forward():
    model = biotorch.convert(mlp(), "brsf")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    start = model[2].feedback.clone()
    for training in (True, False):
        model.train(training)
        for _ in range(2):
            input_gradient(model, batch(), labels())
        with torch.no_grad():
            model(batch())
        alignment_angles(model)
        assert torch.equal(model[2].feedback, start)
    model.train()
    train_step(model, batch(), labels(), optimizer)
    after = model[2].feedback.clone()
    assert not torch.equal(after, start)
    train_step(model, batch(), labels(), optimizer)
    assert not torch.equal(model[2].feedback, after)


@pytest.mark.parametrize("rule", ["frsf", "brsf"])
def test_the_angle_of_a_random_magnitude_rule_knows_the_signs(rule):
    # Without them |R| looks orthogonal to W: 89.8 degrees were reported where 41.4 are true.
    layer = biotorch.convert(nn.Linear(200, 200), rule, copy_weights=False)
    assert alignment_angles(layer)[""] == pytest.approx(math.degrees(math.acos(0.75)), abs=1.0)
    assert alignment_angles(layer)[""] == pytest.approx(angle(layer.weight, layer.feedback * layer.weight.sign()))


@pytest.mark.parametrize("rule", ["usf", "brsf", "frsf"])
def test_angles_of_sign_rules_are_not_stale_before_the_first_forward(rule):
    model = biotorch.convert(mlp(), rule)
    with torch.no_grad():
        model[0].weight.neg_()
    first = alignment_angles(model), norm_ratios(model)
    assert first[0]["0"] < 90
    model(batch())
    assert (alignment_angles(model), norm_ratios(model)) == first


# Layer types ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [2, "same", "valid"])
@pytest.mark.parametrize("kernel_size", [3, 4])
@pytest.mark.parametrize("rule", ["fa", "dfa"])
@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
def test_convolutions_pad_like_torch(rule, kernel_size, padding, mode):
    layer = nn.Conv2d(3, 4, kernel_size, padding=padding, padding_mode=mode)
    x = images(2, size=8)
    expected = layer(x)
    biotorch.convert(layer, rule)
    x.requires_grad_()
    y = layer(x)
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert x.grad.any()


def test_a_convolution_with_padding_same_feeds_back_by_its_feedback():
    layer = biotorch.convert(nn.Conv2d(3, 4, 3, padding="same"), "fa")
    x = images(2, size=5).requires_grad_()
    y = layer(x)
    dy = torch.randn_like(y)
    y.backward(dy)
    torch.testing.assert_close(x.grad, F.conv_transpose2d(dy, layer.feedback, padding=1))


@pytest.mark.parametrize("size", [(4, 5), (2, 3, 5), (2, 3, 2, 5), (5,)])
@pytest.mark.parametrize("outputs", [1, 3])
def test_linear_feeds_back_for_any_leading_dimensions_and_one_output(outputs, size):
    layer = biotorch.convert(nn.Linear(5, outputs), "fa")
    x = torch.randn(size, requires_grad=True)
    y = layer(x)
    dy = torch.randn_like(y)
    y.backward(dy)
    torch.testing.assert_close(x.grad, dy @ layer.feedback)
    torch.testing.assert_close(layer.weight.grad, dy.reshape(-1, outputs).T @ x.detach().reshape(-1, 5))


@pytest.mark.parametrize("rule", TRAINING)
def test_every_rule_trains_a_network_with_one_output(rule):
    model = biotorch.convert(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)), rule)
    model(batch()).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("rule", TRAINING)
def test_bfloat16_autocast_gives_the_gradients_of_full_precision(rule):
    model, x, y = biotorch.convert(convolutions(), rule), images(2, size=8), labels(2)
    expected = gradients(model, x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(x)
        loss = F.cross_entropy(logits.float(), y)
    loss.backward()
    assert logits.dtype == torch.bfloat16
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == torch.float32
        assert angle(parameter.grad, expected[name]) < 5, name
        assert parameter.grad.norm() / expected[name].norm() == pytest.approx(1, rel=0.05), name


# Conversion ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", BY_ERROR)
def test_a_root_linear_is_converted(rule):
    layer = biotorch.convert(nn.Linear(5, 3), rule)
    assert isinstance(layer, FeedbackLayer)
    x = torch.randn(2, 5, requires_grad=True)
    layer(x).sum().backward()
    carrier = layer.feedback if rule in ("fa", "dfa", "dkp") else layer.effective_feedback
    torch.testing.assert_close(x.grad, carrier.sum(0).expand(2, 5))


def test_attention_is_never_left_on_backpropagation_silently():
    # Its projection is read functionally: replacing that layer would only look like a conversion.
    model = biotorch.convert(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), "fa")
    assert not isinstance(model.self_attn.out_proj, FeedbackLayer)
    assert biotorch.audit(model, torch.randn(2, 3, 8)).layers["self_attn"] == "nothing"
    odd = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2, add_bias_kv=True), "fc": nn.Linear(8, 3)})
    with pytest.warns(biotorch.ConversionWarning, match=r"attention \(MultiheadAttention\): add_bias_kv"):
        biotorch.convert(odd, "fa")


@pytest.mark.parametrize("rule", BY_ERROR)
def test_gradient_clip_acts_under_every_rule(rule):
    plain, clipped = nn.Linear(5, 4), nn.Linear(5, 4)
    clipped.load_state_dict(plain.state_dict())
    biotorch.convert(plain, rule, seed=1)
    biotorch.convert(clipped, rule, seed=1, gradient_clip=True)
    results = []
    for layer in (plain, clipped):
        x = torch.randn(3, 5, generator=torch.Generator().manual_seed(2)).requires_grad_()
        (5 * layer(x)).square().sum().backward()
        results.append((x.grad, layer.weight.grad))
    assert results[0][0].abs().max() > 1
    assert torch.equal(results[1][0], results[0][0].clamp(-1, 1))
    assert torch.equal(results[1][1], results[0][1])  # the layer's own gradient is not what is handed on


@pytest.mark.parametrize("method", TRAINING)
def test_the_callers_layer_config_is_never_changed(method):
    config = {"type": method, "options": {"constrain_weights": False, "init": "xavier", "gradient_clip": False}}
    before = copy.deepcopy(config)
    biotorch.BioModule(mlp(), method, layer_config=config)
    biotorch.layers.Conv2d(3, 4, 3, layer_config=config, output_dim=3)
    importlib.import_module(f"biotorch.models.{method}").le_net_mnist(layer_config=config)
    assert config == before


@pytest.mark.parametrize("name", ["le_net_mnist", "le_net_cifar"])
def test_the_lenets_have_as_many_outputs_as_asked_for(name):
    model = biotorch.models.build(name, num_classes=7)
    x = images(channels=1 if name == "le_net_mnist" else 3)
    assert model(x).shape == (2, 7)
    assert biotorch.convert(model, "dfa").features[0].feedback.shape[0] == 7
