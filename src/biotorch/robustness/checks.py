"""Sanity checks: known ways in which an evaluation of robustness misleads, and whether this one shows them.

Most checks follow Carlini et al. 2019, "On evaluating adversarial robustness", and Athalye et al. 2018,
"Obfuscated gradients give a false sense of security".
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

from biotorch.robustness.evidence import (
    ENOUGH_IMAGES,
    Check,
    Evidence,
    along_feedback,
    along_true,
    common,
    comparison,
    is_black_box,
    is_transfer,
    percent,
    radius,
    strongest,
)
from biotorch.robustness.measurement import Measurement, beats
from biotorch.robustness.network_checks import NETWORK_CHECKS
from biotorch.robustness.plan import BUDGET

#: Tolerated share of images without a usable gradient, and of images that withstand an unbounded attack.
_FEW = 0.02
#: Share of the loss's rise in the last quarter of the steps above which the loss counts as still rising. A straight
#: line has 0.25; PGD in 40 steps on undefended networks has 0.01 to 0.10 (measured on le_net_cifar and resnet20).
_RISING = 0.2
#: Smallest share of withstanding images at which a rising loss matters.
_WORTH = 0.05
#: Number of images from which a study can call a network robust, and smallest number of them that must be classified
#: correctly. With half of those left, an attack that breaks a quarter of them more than another one is told from noise.
_IMAGES, _RIGHT = 100, 50
#: Number of images below which the sign test cannot tell any difference from noise: 2^-9 > 0.001.
_TELLING = 10
#: Points by which an attack with another loss may beat PGD. Half of that is common among honest networks.
_POINTS = 10.0


def run_checks(evidence: Evidence) -> list[Check]:
    """Results of all checks that apply."""
    return [check for function in CHECKS if (check := function(evidence)) is not None]


def _enough_images(evidence: Evidence) -> Check:
    n, right = len(evidence.look.clean), int(evidence.look.clean.sum())
    told = f"there are {n} images, of which {right} are classified as labelled"
    name = ENOUGH_IMAGES
    if right < _TELLING:
        return Check.impossible(name, "attack", f"{told}; with fewer than {_TELLING} no comparison of attacks can tell "
                                "a difference from noise")  # fmt: skip
    if n < _IMAGES or right < _RIGHT:
        return Check.impossible(
            name, "attack", f"{told}; a robust network needs {_IMAGES} images, and {_RIGHT} of them right"
        )
    return Check(name, "attack", False, told, {"images": n, "right": right})


def _feedback_worse_than_noise(evidence: Evidence) -> Check | None:
    label = evidence.reference_label
    pairs = list(evidence.pairs(lambda a: along_feedback(a) and a.label == label, lambda b: b.role == "noise"))
    if not pairs:
        return None
    attack, noise = min(pairs, key=lambda pair: abs(pair[0].epsilon - evidence.judged_at))
    fired = not beats(attack.withstands, noise.withstands)
    word = "no better than" if fired else "better than"
    return Check(
        "feedback attack no better than random signs",
        "reader",
        fired,
        f"at epsilon {radius(attack)}, {attack.label} along the feedback gradient leaves {percent(attack)} and random "
        f"signs leave {percent(noise)}, so it is {word} noise",
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
    name = "black-box beats the true gradient"
    found = strongest(evidence, name, "attack", is_black_box, along_true)
    if evidence.confirmed and not evidence.black_box and not (found is not None and found.fired):
        reason = f"Square with {BUDGET:,} queries did not run: it needs images with rows and columns"
        return Check.impossible(name, "attack", reason)
    return found


def _transfer_beats_feedback(evidence: Evidence) -> Check | None:
    return strongest(evidence, "transfer beats the feedback gradient", "feedback", is_transfer, along_feedback)


def _transfer_beats_true(evidence: Evidence) -> Check | None:
    return strongest(evidence, "transfer beats the true gradient", "attack", is_transfer, along_true)


def _other_attack_beats_pgd(evidence: Evidence) -> Check | None:
    name = "another attack breaks many more images than PGD"
    here = [each for each in evidence.reference if each.epsilon == evidence.judged_at]
    others = [
        each for each in evidence.at(evidence.judged_at) if along_true(each) and each.label != evidence.reference_label
    ]
    if not here or not others:
        reason = "no other attack along the true gradient has run"
        return Check.impossible(name, "attack", reason) if evidence.confirmed else None
    one = here[0]
    gaps = {}
    for index, other in enumerate(others):
        broken, stand = common(other, one.withstands)
        gaps[index] = 100 * float((stand & ~broken).double().mean()), beats(broken, stand)
    index = max(gaps, key=lambda each: gaps[each])
    other, (gap, told) = others[index], gaps[index]
    return Check(
        name,
        "attack",
        told and gap > _POINTS,
        f"at epsilon {radius(one)}, {one.label} leaves {percent(one)}, of which {other.label} breaks {gap:.1f} points",
        {"reference": one.robust_accuracy, "gap": gap, "epsilon": one.epsilon},
    )


def _single_step_beats_steps(evidence: Evidence) -> Check | None:
    single = [each for each in evidence.measurements if along_true(each) and each.role == "single step"]
    pairs = [(a, b) for a in single for b in _same(evidence, a)]
    return comparison("a single step beats many", "attack", pairs, "in one step", "in many")


def _fewer_steps_beat_more(evidence: Evidence) -> Check | None:
    checks = [each for each in evidence.measurements if each.purpose == "check" and each.epsilon == evidence.judged_at]
    fewer = [(a, b) for a in checks for b in _same(evidence, a) if 0 < _steps(a) < _steps(b)]
    return comparison("more steps weaken the attack", "attack", fewer, "in fewer steps", "in more")


def _fewer_restarts_beat_more(evidence: Evidence) -> Check | None:
    checks = [each for each in evidence.measurements if each.purpose == "check" and each.epsilon == evidence.judged_at]
    pairs = [
        (b, a) for a in checks for b in _same(evidence, a) if a.settings.get("restarts", 0) > b.settings["restarts"]
    ]
    return comparison("more restarts weaken the attack", "attack", pairs, "with fewer starts", "with more")


def _steps(each: Measurement) -> int:
    return int(each.settings["steps"]) if each.role == "steps" else 0


def _same(evidence: Evidence, check: Measurement) -> list[Measurement]:
    return [each for each in evidence.reference if each.epsilon == check.epsilon]


def _larger_epsilon_weakens(evidence: Evidence) -> Check | None:
    pairs = list(itertools.pairwise(evidence.reference))
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
    walked = [each for each in evidence.figures if each.role == "steps" and each.epsilon > 0]
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
        if other.purpose == "check" and other.epsilon == each.epsilon and _steps(other) == 2 * _steps(each)
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


CHECKS: tuple[Callable[[Evidence], Check | None], ...] = (
    _enough_images,
    _true_beats_feedback,
    _feedback_worse_than_noise,
    _black_box_beats_feedback,
    _transfer_beats_feedback,
    _black_box_beats_true,
    _transfer_beats_true,
    _other_attack_beats_pgd,
    _single_step_beats_steps,
    _fewer_steps_beat_more,
    _fewer_restarts_beat_more,
    _larger_epsilon_weakens,
    _unbounded_leaves_some,
    _no_gradient,
    _cannot_reach_epsilon,
    _still_rising,
    *NETWORK_CHECKS,
)
