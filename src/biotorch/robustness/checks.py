"""Sanity checks: how an evaluation of robustness fools its user, and whether this one did.

Most of them follow Carlini et al. 2019, "On evaluating adversarial robustness", and Athalye et al. 2018,
"Obfuscated gradients give a false sense of security".
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from biotorch.robustness.attacks.gradient import PGD
from biotorch.robustness.measurement import Measurement, beats, interval
from biotorch.robustness.plan import ATTACKS

#: What a check speaks of: the attack along the true gradient or the network itself, whose failure leaves a study
#: without a result; the feedback gradient, whose failure means that it masks; or neither, and it is for the reader.
About = Literal["attack", "feedback", "reader"]

#: Difference of two forward passes from which on a network has noise in it; less is rounding.
NOISE = 1e-4
#: Share of images without a usable gradient, and share of images left by an unbounded attack, that may occur.
_FEW = 0.02
#: Share of the rise of the loss in the last quarter of the steps. A straight line has 0.25, and PGD in 40 steps on
#: undefended networks 0.01 to 0.10 (measured on le_net_cifar and resnet20).
_RISING = 0.2
#: Share of the images that have to withstand for a rising loss to matter.
_WORTH = 0.05


@dataclasses.dataclass(frozen=True)
class Check:
    """What a check found.

    Attributes:
        name: of the check.
        about: what it speaks of, see `About`.
        fired: whether something is wrong.
        sentence: what, in plain words, with the figures.
        figures: them alone.
    """

    name: str
    about: About
    fired: bool
    sentence: str
    figures: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What the checks judge by.

    Attributes:
        measurements: of the study, those for its checks included.
        reference_label: of the attack that others are compared with, PGD along the true gradient; None without it.
        judged_at: the epsilon that the verdict is given at.
        unbounded: the epsilon that holds every image.
        clean: (n,) bool, whether each image is classified as labelled.
        guessing: accuracy (%) of always naming the most frequent label.
        spread: largest difference between two forward passes of the same images.
        probabilities: whether all outputs lie in [0, 1] and sum to one.
        not_numbers: images for which an output is NaN.
    """

    measurements: Sequence[Measurement]
    reference_label: str | None
    judged_at: float
    unbounded: float
    clean: Tensor
    guessing: float
    spread: float
    probabilities: bool
    not_numbers: int = 0

    @property
    def epsilons(self) -> list[float]:
        """Of the figures along the true gradient, ascending, zero left out."""
        return sorted({each.epsilon for each in self.figures if is_white_box(each) and each.epsilon > 0})

    @property
    def figures(self) -> list[Measurement]:
        return [each for each in self.measurements if each.purpose == "figure" and each.name != "transfer_to"]

    @property
    def reference(self) -> list[Measurement]:
        """The attack that others are compared with, at every epsilon."""
        return [each for each in self.figures if each.label == self.reference_label and each.gradient == "true"]

    def at(self, epsilon: float) -> list[Measurement]:
        """The figures of radius `epsilon`; an attack that counts pixels has none."""
        return [each for each in self.figures if each.epsilon == epsilon and each.name != "few_pixel"]

    def pairs(
        self, stronger: Callable[[Measurement], bool], weaker: Callable[[Measurement], bool]
    ) -> Iterator[tuple[Measurement, Measurement]]:
        """Every two figures of the same epsilon, and of different labels, gradients or names."""
        for epsilon in sorted({each.epsilon for each in self.figures}):
            here = self.at(epsilon)
            yield from ((a, b) for a in here if stronger(a) for b in here if weaker(b) and a is not b)


def run_checks(evidence: Evidence) -> list[Check]:
    """Every check that has something to judge by."""
    return [check for function in _CHECKS if (check := function(evidence)) is not None]


# What each of them is about, with its figures ---------------------------------------------------------


def is_white_box(each: Measurement) -> bool:
    """Whether it follows a gradient of the network itself."""
    return each.gradient is not None and each.name != "transfer_to"


def is_black_box(each: Measurement) -> bool:
    """Whether it asks the network for outputs alone."""
    return each.gradient is None and each.name not in ("random_signs", "few_pixel", "transfer", "transfer_to")


def _feedback(each: Measurement) -> bool:
    return each.gradient == "feedback" and is_white_box(each)


def _true(each: Measurement) -> bool:
    return each.gradient == "true" and is_white_box(each)


def _in_steps(each: Measurement) -> bool:
    kind = ATTACKS.get(each.name)
    return kind is not None and issubclass(kind, PGD)


def _feedback_worse_than_noise(evidence: Evidence) -> Check | None:
    pairs = list(evidence.pairs(lambda a: _feedback(a) and a.name == "pgd", lambda b: b.name == "random_signs"))
    if not pairs:
        return None
    attack, noise = min(pairs, key=lambda pair: abs(pair[0].epsilon - evidence.judged_at))
    fired = not beats(attack.withstands, noise.withstands)
    word = "no better than" if fired else "better than"
    return Check(
        "feedback attack no better than random signs",
        "reader",
        fired,
        f"at epsilon {_radius(attack)}, PGD along the feedback gradient leaves {_percent(attack)} and random signs "
        f"{_percent(noise)}: it is {word} noise",
        {"feedback": attack.robust_accuracy, "random_signs": noise.robust_accuracy, "epsilon": attack.epsilon},
    )


def _true_beats_feedback(evidence: Evidence) -> Check | None:
    pairs = list(evidence.pairs(_true, _feedback))
    alike = [(a, b) for a, b in pairs if a.label == b.label]
    return _comparison(
        "true gradient beats feedback gradient",
        "feedback",
        alike,
        "along the true gradient",
        "along the feedback gradient",
    )


def _black_box_beats_feedback(evidence: Evidence) -> Check | None:
    return _strongest(evidence, "black-box beats the feedback gradient", "feedback", is_black_box, _feedback)


def _black_box_beats_true(evidence: Evidence) -> Check | None:
    return _strongest(evidence, "black-box beats the true gradient", "attack", is_black_box, _true)


def _transfer_beats_feedback(evidence: Evidence) -> Check | None:
    return _strongest(evidence, "transfer beats the feedback gradient", "feedback", _is_transfer, _feedback)


def _transfer_beats_true(evidence: Evidence) -> Check | None:
    return _strongest(evidence, "transfer beats the true gradient", "attack", _is_transfer, _true)


def _is_transfer(each: Measurement) -> bool:
    return each.name == "transfer"


def _single_step_beats_steps(evidence: Evidence) -> Check | None:
    pairs = evidence.pairs(lambda a: _true(a) and a.name == "fgsm", lambda b: b in evidence.reference)
    return _comparison("a single step beats many", "attack", list(pairs), "in one step", "in many")


def _fewer_steps_beat_more(evidence: Evidence) -> Check | None:
    checks = [each for each in evidence.measurements if each.purpose == "check" and each.epsilon == evidence.judged_at]
    fewer = [(a, b) for a in checks for b in _same(evidence, a) if a.settings["steps"] < b.settings["steps"]]
    return _comparison("more steps weaken the attack", "attack", fewer, "in fewer steps", "in more")


def _fewer_restarts_beat_more(evidence: Evidence) -> Check | None:
    checks = [each for each in evidence.measurements if each.purpose == "check" and each.epsilon == evidence.judged_at]
    pairs = [(b, a) for a in checks for b in _same(evidence, a) if a.settings["restarts"] > b.settings["restarts"]]
    return _comparison("more restarts weaken the attack", "attack", pairs, "with fewer starts", "with more")


def _same(evidence: Evidence, check: Measurement) -> list[Measurement]:
    return [each for each in evidence.reference if each.epsilon == check.epsilon]


def _larger_epsilon_weakens(evidence: Evidence) -> Check | None:
    steps = sorted((each for each in evidence.reference if each.epsilon > 0), key=lambda each: each.epsilon)
    pairs = list(itertools.pairwise(steps))
    return _comparison("a larger epsilon weakens the attack", "attack", pairs, "", "")


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
        f"with epsilon {measured.epsilon:.3g}, which holds every image there is, PGD along the true gradient leaves "
        f"{_percent(measured)}" + (": it fails for another reason than its bound" if fired else ""),
        {"robust_accuracy": measured.robust_accuracy},
    )


def _no_gradient(evidence: Evidence) -> Check | None:
    followed = [each for each in evidence.measurements if _true(each) and each.clean_accuracy > 0]
    if not followed:
        return None
    worst = max(followed, key=lambda each: each.blind / each.n)
    share = 100 * worst.blind / (worst.n * worst.clean_accuracy / 100)
    fired = share > 100 * _FEW
    return Check(
        "zero or non-finite gradients",
        "attack",
        fired,
        f"{worst.label} along the true gradient met a gradient of zero, or none that is finite, at {worst.blind} of "
        f"{worst.n} images ({share:.1f} % of those classified correctly)",
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
        f"{shown.label}: {shown.settings['steps']} steps of {shown.settings['step_size']:.3g} reach "
        f"{_reach(shown):.3g} from the image, and epsilon is {_radius(shown)}",
        {"reach": _reach(shown), "epsilon": shown.epsilon},
    )


def _reach(each: Measurement) -> float:
    return float(each.settings["steps"] * each.settings["step_size"])


def rising(evidence: Evidence) -> list[Measurement]:
    """Figures of the reference with images left, whose loss rises in the last quarter of the steps about as much as
    before: longer attacks tell whether that matters."""
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
    better = [(each, other) for each, other in longer if beats(*_common(other, each.withstands))]
    shown = better[0][0] if better else max(walked, key=lambda each: each.rising or 0.0)
    assert shown.rising is not None
    told = "".join(f"; in twice as many {_percent(other)} are left" for each, other in longer if each is shown)
    return Check(
        "the loss is still rising at the last step",
        "attack",
        bool(better),
        f"at epsilon {_radius(shown)}, {100 * shown.rising:.1f} % of the rise of the loss of the images that withstand "
        f"falls into the last quarter of PGD's {shown.settings['steps']} steps, which leave {_percent(shown)}{told}",
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
        + ("; attacks have to average over its noise (eot_pgd)" if fired else ""),
        {"difference": evidence.spread},
    )


def _softmaxed(evidence: Evidence) -> Check:
    return Check(
        "the outputs are probabilities",
        "attack",
        evidence.probabilities,
        "all outputs lie in [0, 1] and sum to one: a softmax flattens the gradient; attack the logits in front of it"
        if evidence.probabilities
        else "the outputs are no probabilities, as attacks want it",
        {},
    )


def _not_numbers(evidence: Evidence) -> Check:
    count, n = evidence.not_numbers, len(evidence.clean)
    return Check(
        "outputs are not numbers",
        "attack",
        count > 0,
        f"for {count} of {n} images without an attack an output is NaN; such an image counts as misclassified",
        {"images": count},
    )


def _guesses(evidence: Evidence) -> Check:
    right, n = int(evidence.clean.sum()), len(evidence.clean)
    fired = interval(right, n)[0] <= evidence.guessing
    return Check(
        "the network only guesses",
        "attack",
        fired,
        f"it classifies {100 * right / n:.1f} % of the images as labelled, and naming one class always "
        f"{evidence.guessing:.1f} %",
        {"accuracy": 100 * right / n, "guessing": evidence.guessing},
    )


# Comparisons -----------------------------------------------------------------------------------------


def _strongest(
    evidence: Evidence,
    name: str,
    about: About,
    challenger: Callable[[Measurement], bool],
    defender: Callable[[Measurement], bool],
) -> Check | None:
    """Whether one attack breaks more than all those together that should be stronger."""
    pairs = []
    for epsilon in evidence.epsilons:
        here = evidence.at(epsilon)
        white = [each for each in here if defender(each)]
        pairs += [(each, white) for each in here if challenger(each) and white]
    if not pairs:
        return None
    judged = [(each, white, beats(*_common(each, worst(white)))) for each, white in pairs]
    shown, white, fired = max(judged, key=lambda item: (item[2], -abs(item[0].epsilon - evidence.judged_at)))
    left = 100 * float(worst(white).double().mean())
    return Check(
        name,
        about,
        fired,
        f"at epsilon {_radius(shown)}, {shown.label} leaves {_percent(shown)}, and all attacks along the "
        f"{white[0].gradient} gradient together leave {left:.1f} %",
        {"challenger": shown.robust_accuracy, "white_box": left, "epsilon": shown.epsilon},
    )


def _comparison(
    name: str, about: About, pairs: Sequence[tuple[Measurement, Measurement]], one: str, other: str
) -> Check | None:
    """Whether the first of any pair breaks more images than the second, by more than noise."""
    if not pairs:
        return None
    judged = [(a, b, beats(*_common(a, b.withstands))) for a, b in pairs]
    a, b, fired = max(judged, key=lambda item: (item[2], item[1].robust_accuracy - item[0].robust_accuracy))
    first, second = " ".join(filter(None, [a.label, one])), " ".join(filter(None, [b.label, other]))
    return Check(
        name,
        about,
        fired,
        f"{first} leaves {_percent(a)} at epsilon {_radius(a)}, {second} {_percent(b)} at epsilon {_radius(b)}",
        {"first": a.robust_accuracy, "second": b.robust_accuracy, "epsilon": a.epsilon},
    )


def _common(each: Measurement, withstands: Tensor) -> tuple[Tensor, Tensor]:
    """Both on the images that both have seen, the first ones."""
    n = min(each.n, len(withstands))
    return each.withstands[:n], withstands[:n]


def worst(measurements: Sequence[Measurement]) -> Tensor:
    """Whether each image withstands all of the attacks, as far as they have seen it: (n,) bool."""
    n = max(each.n for each in measurements)
    total = torch.ones(n, dtype=torch.bool)
    for each in measurements:
        total[: each.n] &= each.withstands
    return total


def _percent(each: Measurement) -> str:
    return f"{each.robust_accuracy:.1f} %"


def _radius(each: Measurement) -> str:
    return f"{each.epsilon:.3g}"


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
