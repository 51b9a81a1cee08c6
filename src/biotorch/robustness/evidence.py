"""Evidence of a robustness study, and the comparisons of attacks from which its checks and its verdict are built."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from biotorch.robustness.look import Look
from biotorch.robustness.measurement import Measurement, beats

#: Subject of a check. `attack`: the attacks, or a property of the network that defeats them; if this check fires or
#: could not run, the network is not called robust. `network`: the network itself; if this check fires, there is nothing
#: to judge. `feedback`: the feedback gradient; if this check fires, that gradient masks. `reader`: a hint that does not
#: change the verdict.
About = Literal["attack", "network", "feedback", "reader"]

#: Name of the check without which no other one says much.
ENOUGH_IMAGES = "enough images"


@dataclasses.dataclass(frozen=True)
class Check:
    """Result of one sanity check.

    Attributes:
        name: name of the check.
        about: subject of the check, see `About`.
        fired: whether the check found a problem.
        sentence: the finding in plain words, with its figures; or the reason why the check could not run.
        figures: the same figures by name.
        ran: whether there was enough evidence for the check.
    """

    name: str
    about: About
    fired: bool
    sentence: str
    figures: Mapping[str, float]
    ran: bool = True

    @classmethod
    def impossible(cls, name: str, about: About, reason: str) -> Check:
        """Check that could not run, for the given reason."""
        return cls(name, about, False, reason, {}, ran=False)


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Everything that the checks and the verdict are computed from.

    Attributes:
        measurements: all measurements of the study, including those made only for its checks.
        reference_label: label of the reference attack (PGD along the true gradient), which the other attacks are
            compared with; None if it was not run.
        judged_at: epsilon of the verdict.
        unbounded: epsilon whose ball contains every possible image.
        look: observations of the network, including its clean predictions.
        confirmed: whether the attacks have run that a network must withstand before it is called robust.
        black_box: whether a black-box attack of real strength is among them.
    """

    measurements: Sequence[Measurement]
    reference_label: str | None
    judged_at: float
    unbounded: float
    look: Look
    confirmed: bool = False
    black_box: bool = False

    def with_more(self, measurements: Sequence[Measurement]) -> Evidence:
        """Evidence with further measurements."""
        return dataclasses.replace(self, measurements=[*self.measurements, *measurements])

    @property
    def epsilons(self) -> list[float]:
        """Epsilons above zero of the attacks along the true gradient, ascending."""
        return sorted({each.epsilon for each in self.figures if is_white_box(each) and each.epsilon > 0})

    @property
    def figures(self) -> list[Measurement]:
        """Measurements shown in the table, without transfers to the twin (they attack the twin)."""
        return [each for each in self.measurements if each.purpose == "figure" and not each.on_twin]

    @property
    def reference(self) -> list[Measurement]:
        """Measurements of the reference attack, one per epsilon."""
        along = [each for each in self.measurements if each.label == self.reference_label and each.gradient == "true"]
        return sorted((each for each in along if each.epsilon > 0), key=lambda each: each.epsilon)

    def at(self, epsilon: float) -> list[Measurement]:
        """Measurements at radius `epsilon`, without attacks that have no radius."""
        return [each for each in self.figures if each.epsilon == epsilon and each.role != "no radius"]

    def pairs(
        self, stronger: Callable[[Measurement], bool], weaker: Callable[[Measurement], bool]
    ) -> Iterator[tuple[Measurement, Measurement]]:
        """All pairs (a, b) of different measurements at one epsilon where `stronger(a)` and `weaker(b)` hold."""
        for epsilon in sorted({each.epsilon for each in self.figures}):
            here = self.at(epsilon)
            yield from ((a, b) for a in here if stronger(a) for b in here if weaker(b) and a is not b)


def is_white_box(each: Measurement) -> bool:
    """Whether the attack follows a gradient of the studied network."""
    return each.gradient is not None and not each.on_twin


def is_black_box(each: Measurement) -> bool:
    """Whether the attack uses only outputs of the network."""
    return each.role == "black box"


def is_transfer(each: Measurement) -> bool:
    """Whether the attack transfers examples to the studied network."""
    return each.role == "transfer" and not each.on_twin


def along_feedback(each: Measurement) -> bool:
    """Whether the attack follows the feedback gradient of the studied network."""
    return each.gradient == "feedback" and is_white_box(each)


def along_true(each: Measurement) -> bool:
    """Whether the attack follows the true gradient of the studied network."""
    return each.gradient == "true" and is_white_box(each)


def strongest(
    evidence: Evidence,
    name: str,
    about: About,
    challenger: Callable[[Measurement], bool],
    defender: Callable[[Measurement], bool],
) -> Check | None:
    """Check whether some challenger breaks more images than all defenders together, which should be stronger.

    Args:
        evidence: the measurements.
        name: name of the check.
        about: subject of the check.
        challenger, defender: select the measurements of each side.

    Returns:
        The check for the comparison nearest to the epsilon of the verdict, where comparisons that fired come first;
        None if a side has no measurement. A check of the attacks that fires only beyond the epsilon of the verdict is a
        hint for the reader.
    """
    pairs = []
    for epsilon in evidence.epsilons:
        here = evidence.at(epsilon)
        white = [each for each in here if defender(each)]
        pairs += [(each, white) for each in here if challenger(each) and white]
    if not pairs:
        return None
    judged = [(each, white, beats(*common(each, worst(white)))) for each, white in pairs]

    def order(item: tuple[Measurement, list[Measurement], bool]) -> tuple[bool, bool, float]:
        beyond = about == "attack" and item[0].epsilon > evidence.judged_at
        return item[2] and not beyond, item[2], -abs(item[0].epsilon - evidence.judged_at)

    shown, white, fired = max(judged, key=order)
    if fired and about == "attack" and shown.epsilon > evidence.judged_at:
        about = "reader"  # at the epsilon of the verdict the attacks are not beaten
    left = 100 * float(worst(white).double().mean())
    return Check(
        name,
        about,
        fired,
        f"at epsilon {radius(shown)}, {shown.label} leaves an accuracy of {percent(shown)}, and all attacks along the "
        f"{white[0].gradient} gradient together leave {left:.1f} %",
        {"challenger": shown.robust_accuracy, "white_box": left, "epsilon": shown.epsilon},
    )


def comparison(
    name: str, about: About, pairs: Sequence[tuple[Measurement, Measurement]], one: str, other: str
) -> Check | None:
    """Check whether in any pair the first attack breaks more images than the second, by more than noise.

    Args:
        name: name of the check.
        about: subject of the check.
        pairs: attacks to compare; each second one should be the stronger.
        one, other: words that follow the label of the first and of the second attack in the sentence.

    Returns:
        The check for the most telling pair, or None without pairs.
    """
    if not pairs:
        return None
    judged = [(a, b, beats(*common(a, b.withstands))) for a, b in pairs]
    a, b, fired = max(judged, key=lambda item: (item[2], item[1].robust_accuracy - item[0].robust_accuracy))
    first, second = " ".join(filter(None, [a.label, one])), " ".join(filter(None, [b.label, other]))
    return Check(
        name,
        about,
        fired,
        f"{first} leaves {percent(a)} at epsilon {radius(a)}, {second} leaves {percent(b)} at epsilon {radius(b)}",
        {"first": a.robust_accuracy, "second": b.robust_accuracy, "epsilon": a.epsilon},
    )


def common(each: Measurement, withstands: Tensor) -> tuple[Tensor, Tensor]:
    """Results of a measurement and of `withstands`, cut to the first images, which both have seen."""
    n = min(each.n, len(withstands))
    return each.withstands[:n], withstands[:n]


def worst(measurements: Sequence[Measurement]) -> Tensor:
    """Whether each image withstands every attack that has seen it: (n,) bool."""
    n = max(each.n for each in measurements)
    total = torch.ones(n, dtype=torch.bool)
    for each in measurements:
        total[: each.n] &= each.withstands
    return total


def percent(each: Measurement) -> str:
    """Accuracy under the attack, as text with a percent sign."""
    return f"{each.robust_accuracy:.1f} %"


def radius(each: Measurement) -> str:
    """Epsilon of the attack, as text."""
    return f"{each.epsilon:.3g}"
