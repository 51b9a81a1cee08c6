"""Accuracy and calibration of a network under common corruptions."""

from __future__ import annotations

import dataclasses
import operator
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from biotorch import _files, _seeding
from biotorch._names import unknown
from biotorch._tables import Table
from biotorch.robustness.attacks.attempt import outputs_of
from biotorch.robustness.attacks.inputs import read_pair, require, require_counts, require_network
from biotorch.robustness.calibration import Calibration, calibration
from biotorch.robustness.corrupting import EDITION, KINDS, SEVERITIES, corrupt
from biotorch.robustness.identity import identity_of
from biotorch.robustness.store import Store

#: Accuracy (%) or another figure by kind of corruption and severity.
Grid = Mapping[str, Mapping[int, float]]


@dataclasses.dataclass(frozen=True)
class Corruptions:
    """Accuracy of a network under common corruptions; `str(found)` is its report. All figures but `n` are in percent.

    Attributes:
        n: number of images.
        clean_accuracy: accuracy on the images themselves.
        accuracy: accuracy by kind and severity.
        ece: expected calibration error by kind and severity, see `Calibration`.
        baseline: accuracy of the baseline network on the same corrupted images, or None without one.

    Examples:
        >>> accuracy = {"fog": {1: 90.0, 2: 80.0}, "snow": {1: 60.0, 2: 50.0}}
        >>> twin = {"fog": {1: 95.0, 2: 85.0}, "snow": {1: 55.0, 2: 45.0}}
        >>> found = biotorch.robustness.Corruptions(100, 95.0, accuracy, {}, twin)
        >>> found.mean_accuracy, found.corruption_errors, found.mce
        (70.0, {'fog': 150.0, 'snow': 90.0}, 120.0)
    """

    n: int
    clean_accuracy: float
    accuracy: Grid
    ece: Grid
    baseline: Grid | None = None

    @property
    def mean_accuracy(self) -> float:
        """Mean accuracy over all kinds and severities."""
        return statistics.fmean(_means(self.accuracy).values())

    @property
    def mean_ece(self) -> float:
        """Mean expected calibration error over all kinds and severities."""
        return statistics.fmean(_means(self.ece).values())

    @property
    def corruption_errors(self) -> dict[str, float]:
        """Corruption error (CE) by kind: the errors summed over severities, in percent of the baseline's.

        Hendrycks and Dietterich (2019), section 4.1, where the baseline is AlexNet. Without a baseline, the mean error,
        which is not normalised. A kind in which the baseline makes no error has none.
        """
        errors = {kind: 100 - mean for kind, mean in _means(self.accuracy).items()}
        if self.baseline is None:
            return errors
        base = {kind: 100 - mean for kind, mean in _means(self.baseline).items()}
        return {kind: 100 * error / base[kind] for kind, error in errors.items() if base[kind] > 0}

    @property
    def mce(self) -> float | None:
        """Mean corruption error (mCE), the mean of `corruption_errors`; None without errors of a baseline."""
        errors = self.corruption_errors
        return statistics.fmean(errors.values()) if errors and self.baseline is not None else None

    @property
    def sentence(self) -> str:
        """Sentence with the mean accuracy and the mCE."""
        relative = "no baseline" if self.baseline is None else "the baseline makes no error"
        mce = f"no mCE ({relative})" if self.mce is None else f"mCE {self.mce:.1f} % of the baseline's errors"
        return (
            f"Corruptions: {self.mean_accuracy:.1f} % of the corrupted images are classified as labelled, "
            f"{self.clean_accuracy:.1f} % without corruption; {mce}."
        )

    @property
    def table(self) -> Table:
        """Table of accuracies (%): one row per kind, one column per severity, and the corruption error of the kind."""
        severities = list(next(iter(self.accuracy.values())))
        means, errors, base = _means(self.accuracy), self.corruption_errors, self.baseline
        rows = [
            [
                kind.replace("_", " "),
                *(f"{found[severity]:.1f}" for severity in severities),
                f"{means[kind]:.1f}",
                *([] if base is None else [f"{errors[kind]:.1f}" if kind in errors else "-"]),
            ]
            for kind, found in self.accuracy.items()
        ]
        heads = [*(f"severity {each}" for each in severities), "mean", *([] if base is None else ["CE"])]
        notes = [f"{self.n:,} images; {self.clean_accuracy:.1f} % right without a corruption."]
        if base is not None:
            notes.append("CE: corruption error, in percent of the baseline's error on the same images.")
        return Table("Accuracy (%) under corruptions", ["corruption", *heads], rows, notes)

    def __str__(self) -> str:
        return f"{self.sentence}\n\n{self.table.markdown()}"

    def to_json(self) -> dict[str, Any]:
        """Figures as plain values, for strict JSON."""
        return {
            **vars(self),
            "sentence": self.sentence,
            "mean_accuracy": self.mean_accuracy,
            "mean_ece": self.mean_ece,
            "corruption_errors": self.corruption_errors,
            "mce": self.mce,
        }


def _means(grid: Grid) -> dict[str, float]:
    """Mean over the severities of each kind."""
    return {kind: statistics.fmean(values.values()) for kind, values in grid.items()}


def corruptions(
    model: nn.Module,
    data: tuple[Any, Any] | Iterable[Any],
    kinds: Sequence[str] = KINDS,
    severities: Sequence[int] = SEVERITIES,
    baseline: nn.Module | None = None,
    *,
    seed: int = 0,
    batch_size: int = 250,
    folder: Path | str | None = None,
    on_kind: Callable[[str, Mapping[int, float]], None] | None = None,
) -> Corruptions:
    """Measure accuracy and calibration on corrupted images, see `corrupt`, of which none is stored.

    Args:
        model: maps images in [0, 1] to outputs (n, C). It may be converted by `biotorch.convert` or not.
        data: images (n, C, H, W) in [0, 1], with one or three channels, and labels (n,), as
            tensors or arrays; or a DataLoader.
        kinds: kinds of corruptions. Default: all fifteen.
        severities: severities from 1 to 5. Default: all five.
        baseline: another network for the same images, such as a twin trained by backpropagation. Its errors on the same
            corrupted images are the unit of the mean corruption error.
        seed: seed of all randomness. Equal seeds and batch sizes give equal figures.
        batch_size: number of images corrupted and evaluated at once.
        folder: folder for the measurements, one file per kind; the next call with it reuses them. None keeps nothing.
        on_kind: called with each kind that was not in the folder and its accuracies by severity, once measured.

    Raises:
        ValueError: data, kinds, severities or another argument are unusable, or the network has a reject class.

    Examples:
        >>> images, model = torch.rand(20, 1, 8, 8), nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> data = images, model(images).argmax(1)
        >>> found = biotorch.robustness.corruptions(model, data, ["jpeg_compression", "contrast"], baseline=model)
        >>> list(found.accuracy), found.clean_accuracy, found.mce
        (['jpeg_compression', 'contrast'], 100.0, 100.0)
    """
    require_network(model)
    if baseline is not None:
        require_network(baseline, "baseline")
    images, labels = data = read_pair(data, gradients=False)
    require_counts(batch_size=batch_size)
    require(bool(kinds) and bool(severities), "kinds and severities: at least one of each is needed")
    if wrong := set(kinds) - set(KINDS):
        raise unknown("kind of corruption", wrong.pop(), KINDS)
    store = Store(folder)
    networks = [model, *([] if baseline is None else [baseline])]
    clean = calibration(model, data, batch_size=batch_size)
    common = [*map(identity_of, networks), _files.state_hash({"images": images, "labels": labels})]
    found: dict[str, list[list[tuple[float, float]]]] = {}  # by kind, severity and network: accuracy and ECE
    for kind in kinds:
        identity = f"{_seeding.derive(*common, kind, *severities, seed, batch_size, EDITION):016x}"
        if (stored := store.get(f"corruption_{kind}", identity, operator.itemgetter("figures"))) is not None:
            found[kind] = stored
            continue
        found[kind] = [
            [(each.accuracy, each.ece) for each in _measured(networks, data, batch_size, kind, severity, seed)]
            for severity in severities
        ]
        store.put(f"corruption_{kind}", identity, {"kind": kind, "figures": found[kind]})
        if on_kind is not None:
            on_kind(kind, {severity: each[0][0] for severity, each in zip(severities, found[kind], strict=True)})

    def grid(network: int, figure: int) -> dict[str, dict[int, float]]:
        return {
            kind: {severity: each[network][figure] for severity, each in zip(severities, rows, strict=True)}
            for kind, rows in found.items()
        }

    return Corruptions(len(images), clean.accuracy, grid(0, 0), grid(0, 1), None if baseline is None else grid(1, 0))


def _measured(
    networks: Sequence[nn.Module], data: tuple[Tensor, Tensor], batch_size: int, kind: str, severity: int, seed: int
) -> list[Calibration]:
    """Accuracy and calibration of each network on the same corrupted images."""

    def change(batch: Tensor, start: int) -> Tensor:
        return corrupt(batch, kind, severity, seed=_seeding.derive(seed, start))

    return [Calibration.of(outputs, data[1].cpu()) for outputs in outputs_of(networks, *data, batch_size, change)]
