"""Findings of a robustness study: verdict, checks and table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from biotorch._tables import Table
from biotorch.robustness.evidence import ENOUGH_IMAGES, Check, Evidence, worst
from biotorch.robustness.measurement import Measurement, interval

Word = Literal["inconclusive", "masked", "not robust", "robust"]


def judge(evidence: Evidence, checks: Sequence[Check]) -> tuple[Word, str]:
    """Verdict, and a sentence with its reason. The first word that applies is taken:

    ================  ===================================================================================
    `inconclusive`    the network only guesses
    `masked`          at some epsilon, the true gradient, a black box or a transfer breaks more images
                      than the feedback gradient, by more than noise
    `not robust`      at the epsilon of the verdict, the strongest attack leaves less than half of the
                      clean accuracy
    `inconclusive`    no PGD along the true gradient was run, a check on the attacks fired or could not
                      run, or the 95 % interval of what is left reaches below half of the clean accuracy
    `robust`          otherwise
    ================  ===================================================================================
    """
    clean = 100 * float(evidence.look.clean.double().mean())
    left, bounds = strongest(evidence, evidence.judged_at)
    stands = (
        f"Under the strongest attack at epsilon {evidence.judged_at:.3g}, {left:.1f} % of the images [{bounds[0]:.1f}, "
        f"{bounds[1]:.1f}] are still classified as labelled; without an attack {clean:.1f} % are."
    )
    beyond = [each for each in evidence.reference if evidence.judged_at < each.epsilon < evidence.unbounded]
    if beyond:
        stands += f" At epsilon {beyond[0].epsilon:.3g}, {beyond[0].label} leaves {beyond[0].robust_accuracy:.1f} %."

    def fired(about: str) -> list[Check]:
        return [check for check in checks if check.fired and check.about == about]

    failed = fired("attack")
    if guessing := fired("network"):
        return "inconclusive", f"There is nothing to judge: {guessing[0].name}. {stands}"
    if masking := fired("feedback"):
        return "masked", f"The feedback gradient hides how well a real attacker does: {masking[0].sentence}. {stands}"
    if left < clean / 2:
        names = ", ".join(check.name for check in failed)
        return "not robust", stands + (f" Perhaps even less is left, because a check fired: {names}." if failed else "")
    if not evidence.reference:
        return "inconclusive", f"PGD along the true gradient was not run. {stands}"
    if failed:
        return "inconclusive", f"The attacks cannot be trusted: {failed[0].name}. {stands}"
    if missing := [check for check in checks if not check.ran and check.about == "attack"]:
        return "inconclusive", f"A check could not run: {missing[0].name} ({missing[0].sentence}). {stands}"
    if bounds[0] < clean / 2:
        return "inconclusive", f"More images are needed: half of the clean accuracy lies in the interval. {stands}"
    return "robust", stands


def worth_confirming(evidence: Evidence, checks: Sequence[Check]) -> bool:
    """Whether the attacks that confirm `robust` could change the verdict.

    They are costly. A network that is broken, masked or only guesses stays so, and few images confirm nothing.
    """
    settled = any(check.fired and check.about in ("network", "feedback") for check in checks)
    enough = any(check.name == ENOUGH_IMAGES and check.ran for check in checks)
    left, _ = strongest(evidence, evidence.judged_at)
    return enough and not settled and left >= 50 * float(evidence.look.clean.double().mean())


def strongest(evidence: Evidence, epsilon: float) -> tuple[float, tuple[float, float]]:
    """Accuracy (%) if each image meets the worst of all attacks up to `epsilon`, with its 95 % interval."""
    withstands = withstanding(evidence, epsilon)
    kept, n = int(withstands.sum()), len(withstands)
    return 100 * kept / n, interval(kept, n)


def withstanding(evidence: Evidence, epsilon: float) -> Tensor:
    """Whether each image withstands the worst of all attacks up to `epsilon`: (n,) bool."""
    inside = [
        each
        for each in evidence.measurements
        if each.epsilon <= epsilon and each.role != "no radius" and not each.on_twin
    ]
    withstands = evidence.look.clean.clone()
    if inside:
        attacked = worst(inside)
        withstands &= torch.cat([attacked, torch.ones(len(withstands) - len(attacked), dtype=torch.bool)])
    return withstands


#: Largest number of classes in the table.
_SHOWN = 20


@dataclasses.dataclass(frozen=True)
class ClassAccuracy:
    """Accuracies of one class, in percent.

    Attributes:
        label: number of the class.
        n: number of its images.
        clean_accuracy: share of them that are classified as labelled without an attack.
        robust_accuracy: share of them that withstand every attack up to the epsilon of the verdict.
        interval: 95 % interval of `robust_accuracy` (Wilson).
    """

    label: int
    n: int
    clean_accuracy: float
    robust_accuracy: float
    interval: tuple[float, float]


def per_class(labels: Tensor, clean: Tensor, withstands: Tensor) -> list[ClassAccuracy]:
    """Accuracies of the classes that occur, in their order.

    Args:
        labels: (n,) int64.
        clean, withstands: (n,) bool, whether each image is classified as labelled without an attack, and under the
            strongest one.
    """
    found = []
    for label in sorted(set(labels.tolist())):
        own = labels.cpu() == label
        n, kept = int(own.sum()), int(withstands[own].sum())
        found.append(ClassAccuracy(label, n, 100 * int(clean[own].sum()) / n, 100 * kept / n, interval(kept, n)))
    return found


def class_table(classes: Sequence[ClassAccuracy], epsilon: float) -> Table:
    """Table with one row per class; of more than 20 classes those with the lowest accuracy under attack."""
    shown = sorted(classes, key=lambda each: each.robust_accuracy)[:_SHOWN] if len(classes) > _SHOWN else classes
    left_out = [f"The {_SHOWN} classes of {len(classes)} with the lowest accuracy under attack."]
    return Table(
        title=f"Accuracy (%) of each class, epsilon {epsilon:.3g}",
        header=["class", "images", "no attack", "strongest attack"],
        rows=[
            [
                str(each.label),
                f"{each.n:,}",
                f"{each.clean_accuracy:.1f}",
                f"{each.robust_accuracy:.1f} [{each.interval[0]:.1f}, {each.interval[1]:.1f}]",
            ]
            for each in shown
        ],
        notes=left_out if len(shown) < len(classes) else [],
    )


_NAMES = {"transfer": "transfer from the twin", "transfer_to": "transfer to the twin (its accuracy)"}


@dataclasses.dataclass(frozen=True)
class Study:
    """Findings of a robustness study; `str(study)` is its report.

    Attributes:
        verdict: `inconclusive`, `masked`, `not robust` or `robust`, see `biotorch.robustness.verdict.judge`.
        sentence: reason of the verdict, with the accuracy under the strongest attack.
        judged_at: epsilon of the verdict, the middle one of the study's epsilons above zero, of two the larger.
        checks: every sanity check that applies, including those that could not run.
        measurements: every attack at every epsilon.
        clean_accuracy: accuracy without an attack, in percent.
        worst_case: accuracy (%) by epsilon if each image meets the worst of all attacks, with its 95 % interval.
        cosine: mean cosine between the true and the feedback gradient of the cross-entropy with respect to the image,
            over the correctly classified images. It is 1 for a network with only one gradient, and NaN (null in JSON)
            if no image is classified correctly.
        seconds: total duration of the attacks.
        per_class: accuracies of each class, without an attack and under the strongest one at `judged_at`.

    Examples:
        >>> images, model = torch.rand(20, 1, 8, 8), nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> data = images, model(images).argmax(1)
        >>> found = biotorch.robustness.study(model, data, attacks=["fgsm"], epsilons=[0.1])
        >>> found.judged_at, [check.name for check in found.fired]
        (0.1, [])
    """

    verdict: Word
    sentence: str
    judged_at: float
    checks: list[Check]
    measurements: list[Measurement]
    clean_accuracy: float
    worst_case: dict[float, tuple[float, tuple[float, float]]]
    cosine: float
    seconds: float
    per_class: Sequence[ClassAccuracy] = ()

    @property
    def fired(self) -> list[Check]:
        """Checks that fired."""
        return [check for check in self.checks if check.fired]

    @property
    def table(self) -> Table:
        """Table of accuracies (%) with 95 % intervals: one row per attack and gradient, one column per epsilon."""
        shown = [each for each in self.measurements if each.purpose == "figure"]
        columns = sorted({_column(each) for each in shown})
        rows: dict[tuple[str, str, str], dict[tuple[bool, float], str]] = {}
        for each in shown:
            row = rows.setdefault((_described(each), each.gradient or "-", f"{each.n:,}"), {})
            row[_column(each)] = f"{each.robust_accuracy:.1f} {_bounds(each.interval)}"
            if each.rejected is not None:
                kept = int(each.accepted.sum())
                without = f"{_described(each)}, rejected ones counted as broken"
                row = rows.setdefault((without, each.gradient or "-", f"{each.n:,}"), {})
                row[_column(each)] = f"{100 * kept / each.n:.1f} {_bounds(interval(kept, each.n))}"
        rows["strongest, image by image", "-", f"{max(each.n for each in shown):,}"] = {
            (False, each): f"{left:.1f} {_bounds(bounds)}" for each, (left, bounds) in self.worst_case.items()
        }
        pixels = [f"{round(each)} pixels" for counts, each in columns if counts]
        return Table(
            title=f"{self.verdict}: accuracy (%) under attack",
            header=[
                "attack",
                "gradient",
                "images",
                *(f"ε = {each:.3g}" for counts, each in columns if not counts),
                *pixels,
            ],
            rows=[[*head, *(cells.get(each, "-") for each in columns)] for head, cells in rows.items()],
            notes=[
                f"{self.clean_accuracy:.1f} % right without an attack. Brackets: 95 % interval (Wilson).",
                f"Mean cosine between true and feedback gradient: {self.cosine:.3f}.",
                *(["The strongest attack leaves few-pixel out, because few-pixel has no ε."] if pixels else []),
            ],
        )

    def __str__(self) -> str:
        fired = [f"- {check.name}: {check.sentence}." for check in self.fired]
        silent = [f"- {check.name}: {check.sentence}." for check in self.checks if check.ran and not check.fired]
        missing = [f"- {check.name}: {check.sentence}." for check in self.checks if not check.ran]
        return "\n".join(
            [
                f"Verdict: {self.verdict}. {self.sentence}",
                *(["", "Checks that fired:", *fired] if fired else ["", "No check fired."]),
                *(["", "Checks that could not run:", *missing] if missing else []),
                "",
                self.table.markdown(),
                *([class_table(self.per_class, self.judged_at).markdown()] if self.per_class else []),
                "Checks that did not fire:",
                *silent,
            ]
        )

    def to_json(self) -> dict[str, Any]:
        """Findings as plain values, for strict JSON."""
        return {
            "verdict": self.verdict,
            "sentence": self.sentence,
            "judged_at": self.judged_at,
            "clean_accuracy": self.clean_accuracy,
            "worst_case": [
                {"epsilon": epsilon, "robust_accuracy": left, "interval": list(bounds)}
                for epsilon, (left, bounds) in self.worst_case.items()
            ],
            "cosine": None if math.isnan(self.cosine) else self.cosine,
            "checks": [dataclasses.asdict(check) for check in self.checks],
            "measurements": [each.to_json() for each in self.measurements],
            "seconds": self.seconds,
            "per_class": [dataclasses.asdict(each) for each in self.per_class],
        }


def _column(each: Measurement) -> tuple[bool, float]:
    """Sort key of a table column: whether the attack counts pixels, then the number of pixels or the epsilon."""
    return each.role == "no radius", each.epsilon


def _described(each: Measurement) -> str:
    name = _NAMES.get(each.name, each.name)
    return each.label.replace(each.name, name, 1)


def _bounds(interval: tuple[float, float]) -> str:
    return f"[{interval[0]:.1f}, {interval[1]:.1f}]"
