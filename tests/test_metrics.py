"""Alignment angles, norm ratios and gradient angles: closed-form values, and no trace left."""

from __future__ import annotations

import math

import pytest
import torch
from networks import RULES, TRAINING, batch, images, labels, mlp, same, state
from rule_names import without_decay
from torch import nn
from torch.nn import functional as F

import biotorch
from biotorch.metrics import alignment_angles, angle, cka, gradient_alignment, norm_ratios

pytestmark = pytest.mark.usefixtures("targets")


def layer_with(rule: str, weight: list[list[float]], feedback: list[list[float]] | None = None, **options) -> nn.Module:
    """A root Linear whose W, and B where given, are these."""
    layer = nn.Linear(len(weight[0]), len(weight), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
    biotorch.convert(layer, rule, **options)
    if feedback is not None:
        layer.feedback.copy_(torch.tensor(feedback))
    return layer


# Angles ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("feedback", "degrees"),
    [
        ([[3.0, 4.0]], 0.0),
        ([[-3.0, -4.0]], 180.0),
        ([[4.0, -3.0]], 90.0),
        ([[7.0, 1.0]], 45.0),
        ([[30.0, 40.0]], 0.0),
    ],
)
def test_the_angle_between_w_and_b_in_degrees(feedback, degrees):
    angles = alignment_angles(layer_with("fa", [[3.0, 4.0]], feedback))
    assert angles == {"": pytest.approx(degrees, abs=1e-5)}


def test_small_angles_keep_their_digits():
    # acos(cosine) in float64 returns 0 below some 1e-6 degrees.
    tiny = torch.tensor([1.0, 1e-9], dtype=torch.float64)
    assert angle(torch.tensor([1.0, 0.0], dtype=torch.float64), tiny) == pytest.approx(math.degrees(1e-9), rel=1e-6)


def test_the_angle_with_a_zero_tensor_is_nan():
    assert math.isnan(angle(torch.zeros(3), torch.ones(3)))
    assert math.isnan(alignment_angles(layer_with("fa", [[0.0, 0.0]], [[1.0, 2.0]]))[""])


@pytest.mark.parametrize("rule", ["frsf", "brsf"])
def test_sign_rules_are_measured_with_the_signs_of_w(rule):
    # |R| = (4, 3), sign(W) = (+, -): the effective B is (4, -3) and W is (3, -4).
    layer = layer_with(rule, [[3.0, -4.0]], [[4.0, 3.0]])
    assert alignment_angles(layer)[""] == pytest.approx(math.degrees(math.acos(24 / 25)), abs=1e-5)
    assert norm_ratios(layer)[""] == pytest.approx(1.0)


def test_the_uniform_sign_rule_has_the_angle_of_its_signs_and_the_scale_of_its_initializer():
    layer = layer_with("usf", [[3.0, -4.0]])
    assert alignment_angles(layer)[""] == pytest.approx(math.degrees(math.acos(7 / (5 * math.sqrt(2)))), abs=1e-5)
    scale = math.sqrt(2 / 3)  # Xavier, one unit in three: fan_in 2, fan_out 1
    assert norm_ratios(layer)[""] == pytest.approx(scale * math.sqrt(2) / 5)


@pytest.mark.parametrize("rule", ["frsf", "brsf", "usf"])
def test_the_angle_of_a_sign_rule_follows_w_at_once(rule):
    layer = layer_with(rule, [[1.0, 1.0]], None)
    with torch.no_grad():
        layer.feedback.fill_(0.5)
        layer.weight.copy_(torch.tensor([[-2.0, 2.0]]))
    assert alignment_angles(layer)[""] == pytest.approx(0.0, abs=1e-5)
    assert norm_ratios(layer)[""] == pytest.approx(0.25)


@pytest.mark.parametrize(("rule", "degrees"), [("fa", 90.0), ("frsf", 41.41), ("brsf", 41.41), ("usf", 30.0)])
def test_random_feedback_starts_at_the_angle_of_its_distribution(rule, degrees):
    # W and R uniform: cos = E|w| E|r| / E[w^2] = 3/4 for random magnitudes, sqrt(3)/2 for equal ones.
    layer = biotorch.convert(nn.Linear(300, 300), rule, copy_weights=False)
    assert alignment_angles(layer)[""] == pytest.approx(degrees, abs=1.0)


def test_backpropagation_has_angle_zero_and_ratio_one():
    model = biotorch.convert(mlp(), "backpropagation")
    assert alignment_angles(model) == dict.fromkeys(("0", "2", "4"), 0.0)
    assert norm_ratios(model) == dict.fromkeys(("0", "2", "4"), 1.0)


def test_a_direct_rule_has_norm_ratios_and_no_angles():
    model = biotorch.convert(mlp(), {"4": "fa", "*": "dfa"})
    assert set(alignment_angles(model)) == {"4"}
    ratios = norm_ratios(model)
    assert set(ratios) == {"0", "2", "4"}
    assert ratios["0"] == pytest.approx((model[0].feedback.norm() / model[0].weight.norm()).item())


def test_metrics_are_named_by_dotted_path_and_skip_plain_layers():
    model = nn.Module()
    model.net = biotorch.models.build("resnet20")
    biotorch.convert(model, "fa")
    model.plain = nn.Linear(3, 3)
    expected = {name for name, m in model.named_modules() if isinstance(m, nn.Conv2d)} | {"net.fc"}
    assert "net.layer1.0.conv1" in expected
    assert set(alignment_angles(model)) == set(norm_ratios(model)) == expected
    assert set(gradient_alignment(model.net, F.cross_entropy, images(), labels(2))) == {
        name.removeprefix("net.") for name in expected
    }
    assert alignment_angles(mlp()) == norm_ratios(mlp()) == {}


# Gradient alignment ------------------------------------------------------------------------------


def linear_pair(rule: str) -> nn.Sequential:
    return biotorch.convert(nn.Sequential(nn.Linear(6, 4, bias=False), nn.Linear(4, 3, bias=False)), rule)


@pytest.mark.parametrize(("factor", "degrees"), [(1.0, 0.0), (-1.0, 180.0), (5.0, 0.0)])
def test_feedback_proportional_to_w_gives_the_true_gradient_or_its_opposite(factor, degrees):
    model = linear_pair("fa")
    model[1].feedback.copy_(factor * model[1].weight.detach())
    found = gradient_alignment(model, F.cross_entropy, batch(), labels())
    assert found["0"] == pytest.approx(degrees, abs=1e-3)
    assert found["1"] == pytest.approx(0.0, abs=1e-3)  # the error at the last layer is the true one


@pytest.mark.parametrize("rule", TRAINING)
def test_gradient_alignment_is_the_angle_of_the_two_gradients(rule):
    model = biotorch.convert(mlp(), rule)
    found = gradient_alignment(model, F.cross_entropy, batch(), labels())
    plain = mlp()
    plain.load_state_dict(model.state_dict(), strict=False)
    for network in (model, plain):
        F.cross_entropy(network(batch()), labels()).backward()
    for name in ("0", "2", "4"):
        expected = angle(model.get_parameter(f"{name}.weight").grad, plain.get_parameter(f"{name}.weight").grad)
        assert found[name] == pytest.approx(expected, abs=1e-3), name
    if rule not in ("backpropagation", "sham"):
        assert 1 < found["0"] < 179


@pytest.mark.parametrize("rule", RULES)
def test_both_passes_see_the_same_dropout_masks(rule):
    # Two masks would turn even the last layer's gradient, which no rule changes.
    model = nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Dropout(0.5), nn.Linear(64, 3))
    found = gradient_alignment(biotorch.convert(model, rule), F.cross_entropy, batch(), labels())
    assert found["3"] < 1e-3
    if rule == "backpropagation":
        assert found["0"] < 1e-3


def test_gradient_alignment_takes_whatever_the_loss_takes():
    model = biotorch.convert(mlp(), "fa")
    loss = lambda output, targets: F.cross_entropy(output, targets["y"])  # noqa: E731
    assert gradient_alignment(model, loss, batch(), {"y": labels()}).keys() == {"0", "2", "4"}


def test_gradient_alignment_of_zero_gradients_is_nan():
    model = biotorch.convert(mlp(), "fa")
    found = gradient_alignment(model, lambda z, y: 0 * F.cross_entropy(z, y), batch(), labels())
    assert all(math.isnan(value) for value in found.values())
    assert len(found) == 3


def test_frozen_and_unused_layers_are_left_out():
    model = biotorch.convert(mlp(), "fa")
    model[2].weight.requires_grad_(False)
    model.unused = biotorch.convert(nn.Linear(3, 3), "fa")
    model.forward = lambda x: nn.Sequential.forward(model[:5], x)
    assert set(gradient_alignment(model, F.cross_entropy, batch(), labels())) == {"0", "4"}


def test_gradient_alignment_works_where_gradients_are_off():
    model = biotorch.convert(mlp(), "fa")
    with torch.no_grad():
        assert len(gradient_alignment(model, F.cross_entropy, batch(), labels())) == 3


# No trace ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", TRAINING)
def test_metrics_leave_the_network_and_the_random_state_as_they_were(rule):
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(144, 3)
    )
    biotorch.convert(model, rule)
    x, y = images(4, size=8), labels()
    F.cross_entropy(model(x), y).backward()
    before, grads = state(model), {name: p.grad.clone() for name, p in model.named_parameters()}
    random = torch.get_rng_state()
    alignment_angles(model)
    norm_ratios(model)
    gradient_alignment(model, F.cross_entropy, x, y)
    assert same(state(model), before)
    assert same({name: p.grad for name, p in model.named_parameters()}, grads)
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(m.true_gradients for m in model.modules() if hasattr(m, "true_gradients"))


def test_a_loss_that_raises_leaves_no_trace_either():
    model = biotorch.convert(nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)), "fa")
    before = state(model)

    def fail(z, y):
        raise KeyError("stop")

    with pytest.raises(KeyError):
        gradient_alignment(model, fail, batch(), labels())
    assert same(state(model), before)


@pytest.mark.parametrize("rule", RULES)
def test_metrics_are_valid_before_the_first_forward_and_do_not_change_by_it(rule):
    model = biotorch.convert(mlp(), rule)
    before = alignment_angles(model), norm_ratios(model)
    F.cross_entropy(model(batch()), labels()).backward()
    assert (alignment_angles(model), norm_ratios(model)) == before


@without_decay
@pytest.mark.parametrize("rule", RULES)
def test_measuring_does_not_change_what_training_does(rule):
    results = []
    for measured in (False, True):
        torch.manual_seed(0)
        model = biotorch.convert(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3)), rule)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        for _ in range(3):
            if measured:
                gradient_alignment(model, F.cross_entropy, batch(), labels())
                alignment_angles(model)
            optimizer.zero_grad()
            F.cross_entropy(model(batch()), labels()).backward()
            optimizer.step()
            if measured:
                gradient_alignment(model, F.cross_entropy, batch(), labels())
        results.append(state(model))
    assert same(*results)


def test_a_buffer_that_the_forward_replaces_is_put_back():
    class Running(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 3)
            self.register_buffer("mean", torch.zeros(6))

        def forward(self, x):
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
            return self.fc(x - self.mean)

    model = biotorch.convert(Running(), "fa")
    buffer = model.mean
    # One layer: nothing is transported to it, so its update is the true one, if both passes see the same.
    assert biotorch.metrics.gradient_alignment(model, F.cross_entropy, batch(), labels()) == {"fc": 0.0}
    assert model.mean is buffer
    assert not buffer.any()


# Representations ---------------------------------------------------------------------------------


def hsic(a, b):
    """Kornblith et al. 2019, equation 3, with the centring matrix written out."""
    n = len(a)
    centring = torch.eye(n, dtype=a.dtype) - torch.ones(n, n, dtype=a.dtype) / n
    return torch.trace(a @ centring @ b @ centring) / (n - 1) ** 2


def test_cka_is_the_normalised_hsic_of_linear_kernels():
    x, y = torch.randn(12, 5, dtype=torch.float64), torch.randn(12, 30, dtype=torch.float64)
    a, b = x @ x.T, y @ y.T
    assert cka(x, y) == pytest.approx(float(hsic(a, b) / (hsic(a, a) * hsic(b, b)).sqrt()), rel=1e-9)


def test_cka_sees_no_rotation_scale_or_shift_but_other_features():
    x = torch.randn(50, 8, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0]
    assert cka(x, 3 * x @ rotation + 7) == pytest.approx(1)
    uncorrelated = torch.linalg.qr(torch.cat([torch.ones(50, 1, dtype=torch.float64), x, torch.randn(50, 4)], 1))[0]
    assert cka(x, uncorrelated[:, 9:]) == pytest.approx(0, abs=1e-12)
    assert cka(x, x**2) < 0.9
    assert math.isnan(cka(x, torch.ones(50, 2)))
    with pytest.raises(ValueError, match="50 examples are needed"):
        cka(x, x[:3])


@pytest.mark.parametrize("converted", [False, True])
def test_representations_are_the_outputs_of_the_layers(converted):
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(1800, 4))
    if converted:
        biotorch.convert(model, "fa")
    before, x = state(model), images()
    found = biotorch.metrics.representations(model, x)
    assert same(state(model), before)  # batch norm, too
    assert list(found) == ["0", "4"]
    assert torch.equal(found["0"], model[0](x).flatten(1))
    assert found["4"].shape == (2, 4)
    assert not model[0]._forward_hooks


def test_gradients_are_those_of_the_rule_and_of_the_network():
    model, x, y = biotorch.convert(mlp(), "fa"), batch(), labels()
    found = biotorch.metrics.gradients(model, F.cross_entropy, x, y)
    F.cross_entropy(model(x), y).backward()
    with biotorch.true_gradients(model):
        loss = F.cross_entropy(model(x), y)
    true = torch.autograd.grad(loss, [model[0].weight, model[4].weight])
    assert torch.equal(found["0"][0], model[0].weight.grad)
    assert torch.equal(found["0"][1], true[0])
    assert torch.equal(found["4"][0], true[1])
