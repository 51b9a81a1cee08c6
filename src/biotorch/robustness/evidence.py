"""Evidence of a study of robustness, and the comparisons of attacks that its checks and its verdict are made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from biotorch.robustness.measurement import Measurement, beats

#: What a check speaks of: the attack along the true gradient or the network itself, whose failure leaves a study
#: without a result; the feedback gradient, whose failure means that it masks; or neither, and it is for the reader.
About = Literal["attack", "feedback", "reader"]

#: Difference of two forward passes from which on a network has noise in it; less is rounding.
NOISE = 1e-4


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


def is_white_box(each: Measurement) -> bool:
    """Whether it follows a gradient of the network itself."""
    return each.gradient is not None and each.name != "transfer_to"


def is_black_box(each: Measurement) -> bool:
    """Whether it asks the network for outputs alone."""
    return each.gradient is None and each.name not in ("random_signs", "few_pixel", "transfer", "transfer_to")


def along_feedback(each: Measurement) -> bool:
    return each.gradient == "feedback" and is_white_box(each)


def along_true(each: Measurement) -> bool:
    return each.gradient == "true" and is_white_box(each)


def strongest(
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
    judged = [(each, white, beats(*common(each, worst(white)))) for each, white in pairs]
    shown, white, fired = max(judged, key=lambda item: (item[2], -abs(item[0].epsilon - evidence.judged_at)))
    left = 100 * float(worst(white).double().mean())
    return Check(
        name,
        about,
        fired,
        f"at epsilon {radius(shown)}, {shown.label} leaves {percent(shown)}, and all attacks along the "
        f"{white[0].gradient} gradient together leave {left:.1f} %",
        {"challenger": shown.robust_accuracy, "white_box": left, "epsilon": shown.epsilon},
    )


def comparison(
    name: str, about: About, pairs: Sequence[tuple[Measurement, Measurement]], one: str, other: str
) -> Check | None:
    """Whether the first of any pair breaks more images than the second, by more than noise."""
    if not pairs:
        return None
    judged = [(a, b, beats(*common(a, b.withstands))) for a, b in pairs]
    a, b, fired = max(judged, key=lambda item: (item[2], item[1].robust_accuracy - item[0].robust_accuracy))
    first, second = " ".join(filter(None, [a.label, one])), " ".join(filter(None, [b.label, other]))
    return Check(
        name,
        about,
        fired,
        f"{first} leaves {percent(a)} at epsilon {radius(a)}, {second} {percent(b)} at epsilon {radius(b)}",
        {"first": a.robust_accuracy, "second": b.robust_accuracy, "epsilon": a.epsilon},
    )


def common(each: Measurement, withstands: Tensor) -> tuple[Tensor, Tensor]:
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


def percent(each: Measurement) -> str:
    return f"{each.robust_accuracy:.1f} %"


def radius(each: Measurement) -> str:
    return f"{each.epsilon:.3g}"
