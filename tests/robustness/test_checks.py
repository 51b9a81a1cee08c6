"""Every sanity check fires on a network built to trip it, and on no other."""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from deceiving_networks import ATTACKS, Nets, Wrapped, mlp, noisy, strongest_stands_in_the_sentence
from torch import Tensor, nn
from torch.nn import functional as F

from biotorch.robustness import PGD, Attack, Study, checks, plan
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


@dataclasses.dataclass(frozen=True)
class Case:
    """What a check is called and speaks of, and a study that trips it."""

    check: str
    about: str
    study: Callable[[Nets, Callable[..., Study]], Study]


#: By function.
CASES = {
    "_true_beats_feedback": Case(
        "true gradient beats feedback gradient", "feedback", lambda nets, run: run(nets.aligned)
    ),
    "_feedback_worse_than_noise": Case(
        "feedback attack no better than random signs", "reader", lambda nets, run: run(nets.unaligned)
    ),
    "_black_box_beats_feedback": Case(
        "black-box beats the feedback gradient",
        "feedback",
        lambda nets, run: run(nets.unaligned, [*ATTACKS, "differences"]),
    ),
    "_transfer_beats_feedback": Case(
        "transfer beats the feedback gradient", "feedback", lambda nets, run: run(nets.unaligned, source=nets.plain)
    ),
    "_black_box_beats_true": Case(
        "black-box beats the true gradient",
        "attack",
        lambda nets, run: run(Wrapped(nets.plain, rounded), [*ATTACKS, "differences"]),
    ),
    "_transfer_beats_true": Case(
        "transfer beats the true gradient",
        "attack",
        lambda nets, run: run(Wrapped(nets.plain, Tensor.detach), source=nets.plain),
    ),
    "_single_step_beats_steps": Case(
        "a single step beats many", "attack", lambda nets, run: run(Wrapped(nets.plain, rippled), ["fgsm", "pgd"])
    ),
    "_fewer_steps_beat_more": Case(
        "more steps weaken the attack", "attack", lambda nets, run: run(Wrapped(nets.plain, rippled), ["pgd"], [0.25])
    ),
    # One look, eight steps, and the two of the variant with fewer: what comes next has more restarts.
    "_fewer_restarts_beat_more": Case(
        "more restarts weaken the attack",
        "attack",
        lambda nets, run: run(Tiring(nets.plain, 1 + 8 + 2), [{"type": "pgd", "steps": 8}], [0.1]),
    ),
    "_larger_epsilon_weakens": Case(
        "a larger epsilon weakens the attack",
        "attack",
        lambda nets, run: run(Wrapped(nets.plain, flat_outside), ["pgd"], [0.01, 0.03]),
    ),
    "_unbounded_leaves_some": Case(
        "an unbounded attack does not reach zero", "attack", lambda nets, run: run(Wrapped(nets.plain, Tensor.detach))
    ),
    "_no_gradient": Case("zero or non-finite gradients", "attack", lambda nets, run: run(Wrapped(nets.plain, rounded))),
    "_cannot_reach_epsilon": Case(
        "steps x step size is smaller than epsilon",
        "attack",
        lambda nets, run: run(nets.plain, [{"type": "pgd", "step_size": 0.0001}]),
    ),
    "_still_rising": Case(
        "the loss is still rising at the last step",
        "attack",
        lambda nets, run: run(nets.plain, [{"type": "pgd", "random_start": False, "step_size": 0.04 / 40}], [0.1]),
    ),
    "_not_deterministic": Case(
        "the network is not deterministic", "attack", lambda nets, run: run(Wrapped(nets.plain, after=noisy))
    ),
    "_softmaxed": Case(
        "the outputs are probabilities",
        "attack",
        lambda nets, run: run(Wrapped(nets.plain, after=lambda outputs: outputs.softmax(1))),
    ),
    "_not_numbers": Case(
        "outputs are not numbers", "attack", lambda nets, run: run(Wrapped(nets.plain, after=partly_not_a_number))
    ),
    "_guesses": Case("the network only guesses", "attack", lambda nets, run: run(mlp())),
}
#: What a network that shows no gradient cannot but trip, too: found beside the check that a case is for.
NO_GRADIENT = {"zero or non-finite gradients", "an unbounded attack does not reach zero"}
BESIDE = {
    "_black_box_beats_true": NO_GRADIENT,
    "_transfer_beats_true": NO_GRADIENT,
    "_fewer_restarts_beat_more": NO_GRADIENT,
    "_unbounded_leaves_some": NO_GRADIENT,
    "_no_gradient": NO_GRADIENT,
    "_cannot_reach_epsilon": {"the loss is still rising at the last step"},
    "_still_rising": {"steps x step size is smaller than epsilon"},
    "_true_beats_feedback": {"feedback attack no better than random signs"},
    "_feedback_worse_than_noise": {"true gradient beats feedback gradient"},
    "_black_box_beats_feedback": {
        "true gradient beats feedback gradient",
        "feedback attack no better than random signs",
    },
    "_transfer_beats_feedback": {
        "true gradient beats feedback gradient",
        "feedback attack no better than random signs",
    },
}


def test_every_check_has_a_case():
    assert set(CASES) == {function.__name__ for function in checks._CHECKS}


@pytest.mark.parametrize("function", [each.__name__ for each in checks._CHECKS])
@pytest.mark.usefixtures("differences")
def test_fires(nets, run, function):
    """It, and nothing that the network is not to blame for."""
    case = CASES[function]
    found = case.study(nets, run)
    fired = {check.name: check for check in found.fired}
    assert case.check in fired, str(found)
    assert fired[case.check].about == case.about
    assert set(fired) - {case.check} <= BESIDE.get(function, set()), str(found)
    about = {check.about for check in found.fired}
    assert "attack" not in about or found.verdict == "inconclusive"
    assert "attack" in about or "feedback" not in about or found.verdict == "masked"
    assert case.check in str(found).split("Checks that did not fire:")[0]
    strongest_stands_in_the_sentence(found)


@pytest.mark.usefixtures("differences")
def test_all_are_silent_on_a_plain_network(nets, run):
    found = run(nets.plain, [*ATTACKS, "differences"], source=nets.convolution)
    assert not found.fired, str(found)
    assert "No check fired." in str(found)
    asked = {check.name for check in found.checks}
    feedback = {case.check for case in CASES.values() if "feedback" in case.check}  # there is one gradient alone
    assert asked == {case.check for case in CASES.values()} - feedback
    assert found.verdict == "not robust"
    strongest_stands_in_the_sentence(found)


def test_square_beats_a_gradient_that_is_hidden_and_one_that_is_random(nets, run):
    square = [*ATTACKS, {"type": "square", "queries": 200}]
    hidden = run(Wrapped(nets.plain, rounded), square)
    assert "black-box beats the true gradient" in {check.name for check in hidden.fired}, str(hidden)
    masked = run(nets.unaligned, square)
    assert "black-box beats the feedback gradient" in {check.name for check in masked.fired}, str(masked)
    assert (hidden.verdict, masked.verdict) == ("inconclusive", "masked")
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
