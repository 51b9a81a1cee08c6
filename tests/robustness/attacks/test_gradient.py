"""On linear classifiers the best perturbation is known: attacks have to find it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from biotorch import convert
from biotorch.robustness import EOTPGD, FGSM, PGD, BoundsError, MultiTargeted, Normalised, RandomSigns
from biotorch.robustness.attacks.base import Attack
from biotorch.robustness.attacks.losses import cross_entropy, dlr, margin
from biotorch.robustness.attacks.norms import project, random_point, size, steepest


@pytest.fixture
def linear():
    """Two classes in float64, and images far enough from 0 and 1."""
    generator = torch.Generator().manual_seed(1)
    net = nn.Linear(20, 2).double()
    with torch.no_grad():
        net.weight.copy_(torch.randn(2, 20, generator=generator, dtype=torch.float64))
        images = 0.3 + 0.4 * torch.rand(60, 20, generator=generator, dtype=torch.float64)
        net.bias.copy_(-(images @ net.weight.T).mean(0))  # so that both classes occur
    labels = net(images).argmax(1)
    return net, images, labels


def direction(net, labels):
    """w_other - w_y: where the margin grows."""
    return (net.weight[1 - labels] - net.weight[labels]).detach()


@pytest.mark.parametrize("attack", [FGSM, PGD, EOTPGD])
@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_linf_optimum(linear, attack, loss):
    net, images, labels = linear
    epsilon = 0.05
    options = {} if attack is FGSM else {"stop_at_success": False, "steps": 20}
    found = attack(net, epsilon, loss=loss, **options)(images, labels)
    best = images + epsilon * direction(net, labels).sign()
    assert torch.allclose(found, best, atol=1e-12)
    grown = margin(net(found), labels) - margin(net(images), labels)
    assert torch.allclose(grown, epsilon * direction(net, labels).abs().sum(1))


def test_l2_optimum(linear):
    net, images, labels = linear
    epsilon = 0.1
    for attack in (
        FGSM(net, epsilon, norm="l2"),
        PGD(net, epsilon, norm="l2", stop_at_success=False, step_size=epsilon),
    ):
        found = attack(images, labels)
        grown = margin(net(found), labels) - margin(net(images), labels)
        assert torch.allclose(grown, epsilon * direction(net, labels).norm(dim=1), rtol=2e-3)


@pytest.mark.parametrize("attack", [FGSM, PGD, MultiTargeted])
def test_steps_in_l1_leave_out_values_that_cannot_move(linear, attack):
    """The two steepest values stand at the border already, so the third is the best one to change."""
    net, images, labels = linear
    slopes, rows = direction(net, labels), torch.arange(len(images))
    first, second, third = slopes.abs().topk(3, dim=1).indices.T
    for each in (first, second):
        images[rows, each] = (slopes[rows, each] > 0).double()
    best = images.clone()
    best[rows, third] += 0.2 * slopes[rows, third].sign()
    options = {} if attack is FGSM else {"stop_at_success": False, "random_start": False, "steps": 10}
    found = attack(net, 0.2, norm="l1", **options)(images, labels)
    assert torch.allclose(found, best, atol=1e-6)


def test_the_optimum_at_the_border_is_clamped(linear):
    net, _, _ = linear
    images = torch.zeros(8, 20, dtype=torch.float64)
    images[4:] = 1
    labels = torch.zeros(8, dtype=torch.int64)
    found = FGSM(net, 0.2)(images, labels)
    assert torch.allclose(found, (images + 0.2 * direction(net, labels).sign()).clamp(0, 1))


@pytest.mark.parametrize("epsilon", [0.005, 0.02, 0.05])
def test_robust_accuracy_follows_from_the_margins(linear, epsilon):
    net, images, labels = linear
    with torch.no_grad():
        distance = -margin(net(images), labels) / direction(net, labels).abs().sum(1)
    expected = distance > epsilon
    assert 0 < expected.sum() < len(images)
    for attack in (FGSM(net, epsilon), PGD(net, epsilon)):
        assert torch.equal(attack.run(images, labels).robust, expected)


def test_a_planted_direction_is_found():
    """One pixel of 64 decides: attacks change it, noise does not."""
    net = nn.Linear(64, 2).double()
    with torch.no_grad():
        net.weight.zero_()
        net.bias.zero_()
        net.weight[1, 17] = 1.0
        net.bias[0] = 0.55
    images, labels = torch.full((10, 64), 0.5, dtype=torch.float64), torch.zeros(10, dtype=torch.int64)
    for attack in (FGSM(net, 0.06), PGD(net, 0.06)):
        outcome = attack.run(images, labels)
        assert not outcome.robust.any()
        assert (outcome.adversarial[:, 17] > 0.55).all()


# Losses and norms ---------------------------------------------------------------------------------


def test_losses_are_what_they_say():
    outputs = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    for row, label, ce, gap, ratio in zip(
        outputs.tolist(),
        labels.tolist(),
        cross_entropy(outputs, labels).tolist(),
        margin(outputs, labels).tolist(),
        dlr(outputs, labels).tolist(),
        strict=True,
    ):
        others = [value for index, value in enumerate(row) if index != label]
        ordered = sorted(row, reverse=True)
        assert ce == pytest.approx(math.log(sum(math.exp(value) for value in row)) - row[label])
        assert gap == pytest.approx(max(others) - row[label])
        assert ratio == pytest.approx((max(others) - row[label]) / (ordered[0] - ordered[2]))


def test_dlr_needs_three_classes():
    with pytest.raises(ValueError, match="three classes"):
        dlr(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))


def test_the_projection_is_the_nearest_point():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(50, 2, generator=generator, dtype=torch.float64) * 0.4 + 0.3
    points = images + torch.randn(50, 2, generator=generator, dtype=torch.float64)
    grid = torch.cartesian_prod(*[torch.linspace(0, 1, 401, dtype=torch.float64)] * 2)
    for norm in ("linf", "l2", "l1"):
        found = project(points, images, 0.2, norm)
        assert (size(found - images, norm) <= 0.2 + 1e-12).all()
        for image, point, near in zip(images, points, found, strict=True):
            inside = grid[size(grid - image, norm) <= 0.2]
            assert (near - point).norm() <= (inside - point).norm(dim=1).min() + 1e-9


def test_random_points_fill_the_ball():
    images = torch.full((4000, 3), 0.5, dtype=torch.float64)
    for norm, share in (("linf", 0.5**3), ("l2", 0.5**3), ("l1", 0.5**3)):
        found = random_point(images, 0.3, norm, torch.Generator().manual_seed(0)) - images
        distances = size(found, norm)
        assert distances.max() <= 0.3 + 1e-12
        assert (distances < 0.15).double().mean() == pytest.approx(share, abs=0.02)  # its share of the volume


def test_steepest_directions_have_size_one():
    gradient = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
    for norm in ("linf", "l2", "l1"):
        assert torch.allclose(size(steepest(gradient, norm), norm), torch.ones(5))
    assert torch.equal(steepest(torch.zeros(2, 3), "l2"), torch.zeros(2, 3))


# Bounds, gradients -----------------------------------------------------------------------------------


class Leaves(Attack):
    """An attack with a defect."""

    def perturb(self, attempt, index):
        return attempt.images[index] + 2 * self.epsilon

    @property
    def passes(self):
        return 1, 0


def test_an_attack_that_leaves_its_ball_is_told(linear):
    net, images, labels = linear
    with pytest.raises(BoundsError, match=r"Leaves.*left its bounds"):
        Leaves(net, 0.05)(images, labels)


@pytest.mark.parametrize("rule", ["fa", "dfa", "usf"])
def test_both_gradients(rule):
    """`feedback` is what a backward pass of the converted network gives, `true` what the network itself gives."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    state = {name: value.clone() for name, value in plain.state_dict().items()}
    converted = convert(plain, rule)
    twin = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    twin.load_state_dict(state)
    images = 0.2 + 0.6 * torch.rand(9, 12, generator=generator, dtype=torch.float64)
    labels = torch.randint(4, (9,), generator=generator)
    # An earlier batch leaves nothing behind: a direct rule has the error of the attacked batch.
    nn.functional.cross_entropy(converted(images.flip(0)), labels).backward()
    points = images.clone().requires_grad_()
    nn.functional.cross_entropy(converted(points), labels).backward()
    expected = images + 0.1 * points.grad.sign()
    assert torch.equal(FGSM(converted, 0.1, gradient="feedback")(images, labels), expected)
    assert torch.equal(FGSM(converted, 0.1)(images, labels), FGSM(twin, 0.1)(images, labels))
    assert not torch.equal(expected, FGSM(twin, 0.1)(images, labels))


def test_what_is_attacked_is_the_image_in_front_of_the_normalisation(linear):
    net, images, labels = linear
    model = Normalised(net, [0.5] * 20, [0.25] * 20).double()
    found = FGSM(model, 0.05)(images, labels)
    assert torch.allclose((found - images).abs(), torch.full_like(images, 0.05))
    with pytest.raises(ValueError, match="Normalised"):
        FGSM(net, 0.05)(4 * images - 2, labels)


def test_random_signs_are_a_corner_of_the_ball(linear):
    net, images, labels = linear
    found = RandomSigns(net, 0.05)(images, labels)
    assert torch.allclose((found - images).abs(), torch.full_like(images, 0.05))
