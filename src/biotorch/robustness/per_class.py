"""Accuracy of each class, without an attack and under the strongest one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from biotorch._tables import Table
from biotorch.robustness.measurement import interval

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
