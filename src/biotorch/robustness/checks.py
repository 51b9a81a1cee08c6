"""Sanity checks: known ways in which an evaluation of robustness misleads, and whether this one shows them.

Most checks follow Carlini et al. 2019, "On evaluating adversarial robustness", and Athalye et al. 2018,
"Obfuscated gradients give a false sense of security".
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

from biotorch.robustness.attacks.gradient import PGD
from biotorch.robustness.evidence import (
    NOISE,
    Check,
    Evidence,
    along_feedback,
    along_true,
    common,
    comparison,
    is_black_box,
    percent,
    radius,
    strongest,
)
from biotorch.robustness.measurement import Measurement, beats, interval
from biotorch.robustness.plan import ATTACKS

#: Tolerated share of images without a usable gradient, and of images that withstand an unbounded attack.
_FEW = 0.02
#: Share of the loss's rise in the last quarter of the steps above which the loss counts as still rising. A straight
#: line has 0.25; PGD in 40 steps on undefended networks has 0.01 to 0.10 (measured on le_net_cifar and resnet20).
_RISING = 0.2
#: Smallest share of withstanding images at which a rising loss matters.
_WORTH = 0.05


def run_checks(evidence: Evidence) -> list[Check]:
    """Results of all checks for which there is evidence."""
    return [check for function in _CHECKS if (check := function(evidence)) is not None]


def _in_steps(each: Measurement) -> bool:
    kind = ATTACKS.get(each.name)
    return kind is not None and issubclass(kind, PGD)


def _feedback_worse_than_noise(evidence: Evidence) -> Check | None:
    pairs = list(evidence.pairs(lambda a: along_feedback(a) and a.name == "pgd", lambda b: b.name == "random_signs"))
    if not pairs:
        return None
    attack, noise = min(pairs, key=lambda pair: abs(pair[0].epsilon - evidence.judged_at))
    fired = not beats(attack.withstands, noise.withstands)
    word = "no better than" if fired else "better than"
    return Check(
        "feedback attack no better than random signs",
        "reader",
        fired,
        f"at epsilon {radius(attack)}, PGD along the feedback gradient leaves {percent(attack)} and random signs "
        f"leave {percent(noise)}, so PGD is {word} noise",
        {"feedback": attack.robust_accuracy, "random_signs": noise.robust_accuracy, "epsilon": attack.epsilon},
    )


def _true_beats_feedback(evidence: Evidence) -> Check | None:
    pairs = list(evidence.pairs(along_true, along_feedback))
    alike = [(a, b) for a, b in pairs if a.label == b.label]
    return comparison(
        "true gradient beats feedback gradient",
        "feedback",
        alike,
        "along the true gradient",
        "along the feedback gradient",
    )


def _black_box_beats_feedback(evidence: Evidence) -> Check | None:
    return strongest(evidence, "black-box beats the feedback gradient", "feedback", is_black_box, along_feedback)


def _black_box_beats_true(evidence: Evidence) -> Check | None:
    return strongest(evidence, "black-box beats the true gradient", "attack", is_black_box, along_true)


def _transfer_beats_feedback(evidence: Evidence) -> Check | None:
    return strongest(evidence, "transfer beats the feedback gradient", "feedback", _is_transfer, along_feedback)


def _transfer_beats_true(evidence: Evidence) -> Check | None:
    return strongest(evidence, "transfer beats the true gradient", "attack", _is_transfer, along_true)


def _is_transfer(each: Measurement) -> bool:
    return each.name == "transfer"


def _single_step_beats_steps(evidence: Evidence) -> Check | None:
    pairs = evidence.pairs(lambda a: along_true(a) and a.name == "fgsm", lambda b: b in evidence.reference)
    return comparison("a single step beats many", "attack", list(pairs), "in one step", "in many")


def _fewer_steps_beat_more(evidence: Evidence) -> Check | None:
    checks = [each for each in evidence.measurements if each.purpose == "check" and each.epsilon == evidence.judged_at]
    fewer = [(a, b) for a in checks for b in _same(evidence, a) if a.settings["steps"] < b.settings["steps"]]
    return comparison("more steps weaken the attack", "attack", fewer, "in fewer steps", "in more")


def _fewer_restarts_beat_more(evidence: Evidence) -> Check | None:
    checks = [each for each in evidence.measurements if each.purpose == "check" and each.epsilon == evidence.judged_at]
    pairs = [(b, a) for a in checks for b in _same(evidence, a) if a.settings["restarts"] > b.settings["restarts"]]
    return comparison("more restarts weaken the attack", "attack", pairs, "with fewer starts", "with more")


def _same(evidence: Evidence, check: Measurement) -> list[Measurement]:
    return [each for each in evidence.reference if each.epsilon == check.epsilon]


def _larger_epsilon_weakens(evidence: Evidence) -> Check | None:
    steps = sorted((each for each in evidence.reference if each.epsilon > 0), key=lambda each: each.epsilon)
    pairs = list(itertools.pairwise(steps))
    return comparison("a larger epsilon weakens the attack", "attack", pairs, "", "")


def _unbounded_leaves_some(evidence: Evidence) -> Check | None:
    found = [each for each in evidence.measurements if each.purpose == "check" and each.epsilon == evidence.unbounded]
    if not found:
        return None
    measured = min(found, key=lambda each: each.robust_accuracy)
    fired = measured.robust_accuracy > max(100 * _FEW, 100 / measured.n)
    return Check(
        "an unbounded attack does not reach zero",
        "attack",
        fired,
        f"with epsilon {measured.epsilon:.3g}, which allows any image, PGD along the true gradient leaves "
        f"{percent(measured)}" + (", so it fails for another reason than its bound" if fired else ""),
        {"robust_accuracy": measured.robust_accuracy},
    )


def _no_gradient(evidence: Evidence) -> Check | None:
    followed = [each for each in evidence.measurements if along_true(each) and each.clean_accuracy > 0]
    if not followed:
        return None
    worst = max(followed, key=lambda each: each.blind / each.n)
    share = 100 * worst.blind / (worst.n * worst.clean_accuracy / 100)
    fired = share > 100 * _FEW
    return Check(
        "zero or non-finite gradients",
        "attack",
        fired,
        f"{worst.label} along the true gradient met a zero or non-finite gradient at {worst.blind} of {worst.n} images "
        f"({share:.1f} % of those classified correctly)",
        {"images": worst.blind, "share": share},
    )


def _cannot_reach_epsilon(evidence: Evidence) -> Check | None:
    walked = [each for each in evidence.figures if _in_steps(each) and each.epsilon > 0]
    if not walked:
        return None
    short = [each for each in walked if _reach(each) < each.epsilon * (1 - 1e-9)]
    shown = max(short or walked, key=lambda each: each.epsilon / _reach(each))
    decides = any(each in evidence.reference for each in short)
    return Check(
        "steps x step size is smaller than epsilon",
        "attack" if decides or not short else "reader",
        bool(short),
        f"the {shown.settings['steps']} steps of size {shown.settings['step_size']:.3g} of {shown.label} reach a "
        f"distance of {_reach(shown):.3g} from the image, and epsilon is {radius(shown)}",
        {"reach": _reach(shown), "epsilon": shown.epsilon},
    )


def _reach(each: Measurement) -> float:
    return float(each.settings["steps"] * each.settings["step_size"])


def rising(evidence: Evidence) -> list[Measurement]:
    """Measurements of the reference attack that images withstand while the loss still rises at the end.

    The study repeats these with more steps, to see whether that breaks more images.
    """
    return [
        each
        for each in evidence.reference
        if each.rising is not None and each.rising > _RISING and each.robust_accuracy >= 100 * _WORTH
    ]


def _still_rising(evidence: Evidence) -> Check | None:
    walked = [each for each in evidence.reference if each.rising is not None and each.robust_accuracy >= 100 * _WORTH]
    if not walked:
        return None
    longer = [
        (each, other)
        for each in rising(evidence)
        for other in evidence.measurements
        if other.purpose == "check"
        and other.epsilon == each.epsilon
        and other.settings["steps"] == 2 * each.settings["steps"]
    ]
    better = [(each, other) for each, other in longer if beats(*common(other, each.withstands))]
    shown = better[0][0] if better else max(walked, key=lambda each: each.rising or 0.0)
    assert shown.rising is not None
    told = "".join(f"; twice as many steps leave {percent(other)}" for each, other in longer if each is shown)
    return Check(
        "the loss is still rising at the last step",
        "attack",
        bool(better),
        f"at epsilon {radius(shown)}, on images that withstand, {100 * shown.rising:.1f} % of the loss's rise falls "
        f"into the last quarter of PGD's {shown.settings['steps']} steps, which leave {percent(shown)}{told}",
        {"share": 100 * shown.rising, "epsilon": shown.epsilon},
    )


def _not_deterministic(evidence: Evidence) -> Check:
    fired = evidence.spread > NOISE
    averaged = any(each.name == "eot_pgd" and each.gradient == "true" for each in evidence.figures)
    return Check(
        "the network is not deterministic",
        "reader" if averaged else "attack",
        fired,
        f"two forward passes of the same images differ by up to {evidence.spread:.3g}"
        + ("; use an attack that averages over the noise (eot_pgd)" if fired else ""),
        {"difference": evidence.spread},
    )


def _softmaxed(evidence: Evidence) -> Check:
    return Check(
        "the outputs are probabilities",
        "attack",
        evidence.probabilities,
        "all outputs lie in [0, 1] and sum to one; a softmax flattens the gradient, so attack the logits before it"
        if evidence.probabilities
        else "the outputs are not probabilities, as attacks need",
        {},
    )


def _not_numbers(evidence: Evidence) -> Check:
    count, n = evidence.not_numbers, len(evidence.clean)
    return Check(
        "outputs are not numbers",
        "attack",
        count > 0,
        f"without an attack, an output is NaN for {count} of {n} images; such an image counts as misclassified",
        {"images": count},
    )


def _guesses(evidence: Evidence) -> Check:
    right, n = int(evidence.clean.sum()), len(evidence.clean)
    fired = interval(right, n)[0] <= evidence.guessing
    return Check(
        "the network only guesses",
        "attack",
        fired,
        f"the network classifies {100 * right / n:.1f} % of the images as labelled; always predicting one class gives "
        f"{evidence.guessing:.1f} %",
        {"accuracy": 100 * right / n, "guessing": evidence.guessing},
    )


_CHECKS: tuple[Callable[[Evidence], Check | None], ...] = (
    _true_beats_feedback,
    _feedback_worse_than_noise,
    _black_box_beats_feedback,
    _transfer_beats_feedback,
    _black_box_beats_true,
    _transfer_beats_true,
    _single_step_beats_steps,
    _fewer_steps_beat_more,
    _fewer_restarts_beat_more,
    _larger_epsilon_weakens,
    _unbounded_leaves_some,
    _no_gradient,
    _cannot_reach_epsilon,
    _still_rising,
    _not_deterministic,
    _softmaxed,
    _not_numbers,
    _guesses,
)
