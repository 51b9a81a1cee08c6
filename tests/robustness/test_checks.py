"""Every sanity check fires on a network built to trip it, and on no other."""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from deceiving_networks import ATTACKS, Nets, Wrapped, mlp, noisy, strongest_stands_in_the_sentence
from torch import Tensor, nn
from torch.nn import functional as F

from biotorch.robustness import PGD, Attack, Study, plan
from biotorch.robustness.attacks.norms import steepest


class Differences(Attack):
    """A black-box attack: one step along the sign of what each pixel does to the margin, from outputs alone."""

    def perturb(self, attempt, index):
        images, labels = attempt.images[index], attempt.labels[index]
        flat, pixels = images.flatten(1), images[0].numel()
        rises = torch.empty_like(flat)
        for pixel in range(pixels):
            values = []
            for sign in (-1, 1):
                moved = flat.clone()
                moved[:, pixel] = (moved[:, pixel] + sign * self.epsilon).clamp(0, 1)
                with torch.no_grad():
                    outputs = attempt.outputs(moved.view_as(images), index)
                values.append(F.cross_entropy(outputs, labels, reduction="none"))
            rises[:, pixel] = values[1] - values[0]
        return (flat + self.epsilon * rises.sign()).clamp(0, 1).view_as(images)

    @property
    def passes(self):
        return 128, 0


class Tiring(nn.Module):
    """Shows its gradient so many times, and never again."""

    def __init__(self, network, times):
        super().__init__()
        self.network, self.left = network, times

    def forward(self, images):
        self.left -= images.requires_grad
        return self.network(images.detach() if self.left < 0 else images)


def rippled(images):
    """Rises over long ways; over short ones it goes up and down, and up at every sixteenth, where digits lie."""
    return images + 2 / (32 * math.pi) * torch.sin(32 * math.pi * images)


def flat_outside(images):
    """Steep within 0.01 of a sixteenth, flat from there on."""
    grid = (16 * images.detach()).round() / 16
    return grid + 15 * (images - grid).clamp(-0.01, 0.01)


def rounded(images):
    return (16 * images).round() / 16


def partly_not_a_number(outputs):
    """NaN where the network is surest, which argmax takes for class 0."""
    return torch.where(outputs.amax(1, keepdim=True) > 12, torch.nan, outputs)


@pytest.fixture
def differences(monkeypatch):
    monkeypatch.setitem(plan.ATTACKS, "differences", Differences)


class Negated(torch.autograd.Function):
    """The identity, whose gradient points the wrong way."""

    forward = staticmethod(lambda ctx, images: images.clone())
    backward = staticmethod(lambda ctx, gradient: -gradient)


class Coarse(torch.autograd.Function):
    """Images of black and white alone, whose gradient is that of the identity."""

    forward = staticmethod(lambda ctx, images: images.round())
    backward = staticmethod(lambda ctx, gradient: gradient)


class Purified(nn.Module):
    """One step towards the class that the network sees, before it is asked."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        with torch.enable_grad():
            start = images.detach().requires_grad_()
            outputs = self.network(start)
            (gradient,) = torch.autograd.grad(outputs.amax(1).sum(), start)
        return self.network(images + 0.01 * gradient.sign())


class Remembering(nn.Module):
    """Answers an image near one that it has seen as it answered that one."""

    def __init__(self, network):
        super().__init__()
        self.network, self.seen = network, []

    def forward(self, images):
        known = torch.cat(self.seen) if self.seen else images[:0]
        if len(known):
            distances = torch.cdist(images.detach().flatten(1), known.flatten(1))
            nearest = distances.min(1)
            near = (nearest.values < 1.5)[:, None, None, None]
            shown = images + (torch.where(near, known[nearest.indices], images) - images).detach()
        else:
            near, shown = torch.zeros(len(images), 1, 1, 1, dtype=torch.bool), images
        self.seen.append(images.detach()[~near.flatten()])
        return self.network(shown)


class Decoy(nn.Module):
    """An output more, which never wins but comes second, and so takes the gradient."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        outputs = self.network(images)
        wave = torch.sin(200 * images.flatten(1).sum(1, keepdim=True))
        return torch.cat([outputs, outputs.amax(1, keepdim=True) - 0.01 + 0.005 * wave], dim=1)


class TwoFaced(nn.Module):
    """Answers by one network, and shows the outputs of another."""

    def __init__(self, network, shown):
        super().__init__()
        self.network, self.shown = network, shown

    def forward(self, images):
        with torch.no_grad():
            answer = self.network(images).argmax(1, keepdim=True)
        outputs = self.shown(images)
        return outputs.scatter(1, answer, outputs.gather(1, answer) + 20)


@dataclasses.dataclass(frozen=True)
class Case:
    """What a check speaks of, a study that trips it, and other checks that cannot but fire on that network."""

    about: str
    study: Callable[[Nets, Callable[..., Study]], Study]
    beside: frozenset[str] = frozenset()


def case(about, study, *beside):
    return Case(about, study, frozenset(beside))


ZERO, UNBOUNDED = "zero or non-finite gradients", "an unbounded attack does not reach zero"
NO_HIGHER = "the true gradient leads no higher than random signs"
JUMPS, TRANSFER = "the answer switches in a jump", "transfer beats the true gradient"
SAME = "similar images get exactly the same answer"
DISAGREES = "the gradient disagrees with finite differences"
FED_BACK, AS_NOISE = "true gradient beats feedback gradient", "feedback attack no better than random signs"
ONE_STEP, OTHER = "a single step beats many", "another attack breaks many more images than PGD"
BLACK_BOX, FEWER = "black-box beats the true gradient", "more steps weaken the attack"
NO_STEPS, RISING = "steps x step size is smaller than epsilon", "the loss is still rising at the last step"
#: By name of the check.
CASES = {
    FED_BACK: case("feedback", lambda nets, run: run(nets.aligned), AS_NOISE),
    AS_NOISE: case("reader", lambda nets, run: run(nets.unaligned), FED_BACK),
    "black-box beats the feedback gradient": case(
        "feedback", lambda nets, run: run(nets.unaligned, [*ATTACKS, "differences"]), FED_BACK, AS_NOISE
    ),
    "transfer beats the feedback gradient": case(
        "feedback", lambda nets, run: run(nets.unaligned, source=nets.plain), FED_BACK, AS_NOISE
    ),
    BLACK_BOX: case(
        "attack",
        lambda nets, run: run(Wrapped(nets.plain, rounded), [*ATTACKS, "differences"]),
        ZERO, UNBOUNDED, NO_HIGHER,
    ),
    TRANSFER: case(
        "attack",
        lambda nets, run: run(Wrapped(nets.plain, Tensor.detach), source=nets.plain),
        ZERO, UNBOUNDED, NO_HIGHER,
    ),
    OTHER: case(
        "attack", lambda nets, run: run(Decoy(nets.plain), ["pgd"], [0.1]), UNBOUNDED, FEWER, DISAGREES, NO_HIGHER
    ),
    ONE_STEP: case("attack", lambda nets, run: run(Wrapped(nets.plain, rippled), ["fgsm", "pgd"]), OTHER),
    FEWER: case("attack", lambda nets, run: run(Wrapped(nets.plain, rippled), ["pgd"], [0.25]), ONE_STEP),
    # The look takes 17 gradients, PGD 8, one step 1, and the variant with fewer steps 2: the next has more restarts.
    "more restarts weaken the attack": case(
        "attack", lambda nets, run: run(Tiring(nets.plain, 17 + 8 + 1 + 2), [{"type": "pgd", "steps": 8}], [0.1]),
        ZERO, UNBOUNDED, "a larger epsilon weakens the attack",
    ),
    "a larger epsilon weakens the attack": case(
        "attack", lambda nets, run: run(Wrapped(nets.plain, flat_outside), ["pgd"], [0.01, 0.03]), ONE_STEP, DISAGREES,
    ),
    UNBOUNDED: case("attack", lambda nets, run: run(Wrapped(nets.plain, Tensor.detach)), ZERO, NO_HIGHER, BLACK_BOX),
    ZERO: case(
        "attack",
        lambda nets, run: run(Wrapped(nets.plain, rounded)),
        UNBOUNDED, NO_HIGHER, BLACK_BOX, TRANSFER,
    ),
    NO_STEPS: case(
        "attack", lambda nets, run: run(nets.plain, [{"type": "pgd", "step_size": 0.0001}]), RISING, ONE_STEP
    ),
    RISING: case(
        "attack",
        lambda nets, run: run(nets.plain, [{"type": "pgd", "random_start": False, "step_size": 0.04 / 40}], [0.1]),
        NO_STEPS, ONE_STEP,
    ),
    "the network is not deterministic": case("attack", lambda nets, run: run(Wrapped(nets.plain, after=noisy))),
    "the answer depends on the other images": case(
        "attack", lambda nets, run: run(Wrapped(nets.plain, after=lambda outputs: outputs - outputs.mean(0))),
        UNBOUNDED, OTHER, DISAGREES,
    ),
    "the answer depends on whether a gradient is computed": case(
        "attack",
        lambda nets, run: run(Wrapped(nets.plain, lambda images: images.flip(3) if images.requires_grad else images)),
        DISAGREES, ONE_STEP, UNBOUNDED, OTHER, BLACK_BOX,
    ),
    "the answer depends on earlier images": case(
        "attack", lambda nets, run: run(Remembering(nets.plain), ["pgd"], [0.1]), SAME, DISAGREES, JUMPS
    ),
    SAME: case("attack", lambda nets, run: run(Wrapped(nets.plain, Coarse.apply)), DISAGREES, JUMPS),
    "the network computes gradients in its forward pass": case("attack", lambda nets, run: run(Purified(nets.plain))),
    DISAGREES: case(
        "attack", lambda nets, run: run(Wrapped(nets.plain, Negated.apply)), NO_HIGHER, UNBOUNDED, BLACK_BOX
    ),
    JUMPS: case(
        "attack", lambda nets, run: run(TwoFaced(nets.plain, nets.convolution), ["pgd"], [0.1]), OTHER, TRANSFER
    ),
    NO_HIGHER: case("attack", lambda nets, run: run(Wrapped(nets.plain, Tensor.detach)), UNBOUNDED, ZERO, BLACK_BOX),
    "the outputs are no logits": case(
        "attack", lambda nets, run: run(Wrapped(nets.plain, after=lambda outputs: outputs.softmax(1)))
    ),
    "outputs are not numbers": case(
        "attack", lambda nets, run: run(Wrapped(nets.plain, after=partly_not_a_number))
    ),
    "the network only guesses": case("network", lambda nets, run: run(mlp())),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("differences")
def test_fires(nets, run, name):
    """It, and nothing that the network is not to blame for."""
    found = CASES[name].study(nets, run)
    fired = {check.name: check for check in found.fired}
    assert name in fired, str(found)
    assert fired[name].about == CASES[name].about
    assert set(fired) - {name} <= CASES[name].beside, str(found)
    assert found.verdict != "robust"
    assert name in str(found).split("Checks that did not fire:")[0]
    strongest_stands_in_the_sentence(found)


@pytest.mark.usefixtures("differences")
def test_all_are_silent_on_a_plain_network(nets, run):
    found = run(nets.plain, [*ATTACKS, "differences"], source=nets.convolution)
    assert not found.fired, str(found)
    assert "No check fired." in str(found)
    feedback = {name for name in CASES if "feedback" in name}  # there is one gradient alone
    assert {check.name for check in found.checks} == set(CASES) - feedback | {"enough images"}
    assert all(check.ran for check in found.checks)
    assert found.verdict == "not robust"
    strongest_stands_in_the_sentence(found)


def test_square_beats_a_gradient_that_is_hidden_and_one_that_is_random(nets, run):
    square = [*ATTACKS, {"type": "square", "queries": 200}]
    hidden = run(Wrapped(nets.plain, rounded), square)
    assert "black-box beats the true gradient" in {check.name for check in hidden.fired}, str(hidden)
    masked = run(nets.unaligned, square)
    assert "black-box beats the feedback gradient" in {check.name for check in masked.fired}, str(masked)
    assert (hidden.verdict, masked.verdict) == ("not robust", "masked")
    assert "Perhaps even less is left, because a check fired" in hidden.sentence
    assert not run(nets.plain, square).fired


@pytest.mark.parametrize("loss", ["margin", "dlr"])
def test_all_are_silent_with_other_losses(nets, run, loss):
    """On a network with a convolution, in L2."""
    found = run(nets.convolution, ["random_signs", {"type": "pgd", "loss": loss}], [0.5, 1.0], norm="l2")
    assert not found.fired, str(found)


@pytest.mark.parametrize("factor", [1, 2])
def test_a_loss_that_rises_late_without_breaking_more_is_no_failure(nets, run, factor):
    """Plain networks in L2, where the steps of PGD are as long as in L-infinity."""
    found = run(Wrapped(nets.plain, after=lambda outputs: factor * outputs), epsilons=[0.25, 0.5, 1.0], norm="l2")
    assert not found.fired, str(found)


@pytest.mark.parametrize("attack", ["pgd", "eot_pgd"])
def test_noise_in_the_network_does_not_make_it_look_robust(nets, run, attack):
    """A point that one noisy evaluation misclassifies lies at the boundary, and the next one often does not."""
    found = run(Wrapped(nets.plain, after=very_noisy), ["pgd", attack], [0.2])
    [figure] = [each for each in found.measurements if each.label == attack and each.purpose == "figure"]
    assert figure.robust_accuracy < 5, str(found)


def very_noisy(outputs):
    return outputs + torch.randn_like(outputs)


def test_in_l2_a_cross_entropy_that_saturates_does_not_shorten_the_steps(nets, digits):
    """Five times the logits have gradients whose squares vanish: PGD left 39 % of the images where it leaves 3 %."""
    found = PGD(Wrapped(nets.plain, after=lambda outputs: 5 * outputs), 1.0, norm="l2").run(*digits[1])
    assert float(found.robust.double().mean()) < 0.1
    gradient = torch.randn(4, 3, 8, 8)
    for scale in (1e-30, 1.0, 1e30):
        torch.testing.assert_close(steepest(scale * gradient, "l2"), steepest(gradient, "l2"))
    assert not steepest(torch.zeros(2, 5), "l2").any()


def test_variants_of_an_attack_do_not_judge_each_other(nets, run):
    weak = {"type": "pgd", "steps": 40, "step_size": 1e-4}
    found = run(nets.plain, ["random_signs", "fgsm", "pgd", weak])
    assert {check.about for check in found.fired} <= {"reader"}, str(found)
    assert found.verdict == "not robust"


def test_a_measurement_serves_the_table_and_a_check(nets, run, tmp_path):
    """PGD in five steps is asked for, and is what the check of PGD in twenty compares it with."""
    first = run(nets.plain, [{"type": "pgd", "steps": 20}, {"type": "pgd", "steps": 5}], [0.1], folder=tmp_path)
    again = run(nets.plain, [{"type": "pgd", "steps": 20}, {"type": "pgd", "steps": 5}], [0.1], folder=tmp_path)
    assert again.table.rows == first.table.rows
    alone = run(nets.plain, [{"type": "pgd", "steps": 5}], [0.1], folder=tmp_path / "b")
    assert len(alone.table.rows) == 2
    longer = run(nets.plain, [{"type": "pgd", "steps": 20}], [0.1], folder=tmp_path / "b")
    assert "more steps weaken the attack" in {check.name for check in longer.checks}
