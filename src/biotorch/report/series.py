"""Mean and spread over the runs of a configuration, epoch by epoch, and the grouping of curves into panels."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes

from biotorch.experiment.results import Result
from biotorch.report.style import LINES, style
from biotorch.results.groups import at, by_configuration, differs, label, method, without_copies
from biotorch.training import Record


@dataclasses.dataclass(frozen=True)
class Series:
    """Mean and standard deviation of y at each x, over the runs that have a value; zero deviation for a single run."""

    x: list[float]
    mean: list[float]
    spread: list[float]


@dataclasses.dataclass(frozen=True)
class Curve:
    """Runs of one configuration, with the name and look of their curve."""

    name: str
    runs: list[Result]
    color: str
    marker: str
    line: str

    def draw(self, axes: Axes, series: Series, markers: int = 10, **look: Any) -> None:
        """Draw the mean as a line and the spread as a band; `look` overrides the line's properties."""
        drawn: dict[str, Any] = {"linestyle": self.line, "linewidth": 1.4, "label": self.name, **look}
        every = max(1, math.ceil(len(series.x) / markers))
        axes.plot(series.x, series.mean, color=self.color, marker=self.marker, markersize=4, markevery=every, **drawn)
        low = [mean - spread for mean, spread in zip(series.mean, series.spread, strict=True)]
        high = [mean + spread for mean, spread in zip(series.mean, series.spread, strict=True)]
        axes.fill_between(series.x, low, high, color=self.color, alpha=0.15, linewidth=0)


def banded(values: Sequence[Sequence[float]]) -> tuple[list[float], list[float], list[float]]:
    """Mean at each x, and ends of the band of one standard deviation, of the values (one or more) at each x."""
    mean = [statistics.fmean(each) for each in values]
    spread = [statistics.stdev(each) if len(each) > 1 else 0.0 for each in values]
    ends = ([m + sign * s for m, s in zip(mean, spread, strict=True)] for sign in (-1, 1))
    return mean, *ends  # type: ignore[return-value]


def over_epochs(runs: Sequence[Result], value: Callable[[Record], float | None]) -> Series | None:
    """Series of `value(record)` over the epochs that all runs have reached; None if no run has a value."""
    x, mean, spread = [], [], []
    for epoch in range(min(len(run["history"]) for run in runs)):
        values = [found for run in runs if (found := value(run["history"][epoch])) is not None]
        if values:
            x.append(float(epoch))
            mean.append(statistics.fmean(values))
            spread.append(statistics.stdev(values) if len(values) > 1 else 0.0)
    return Series(x, mean, spread) if x else None


def panels(results: Sequence[Result]) -> dict[str, list[Curve]]:
    """Curves by the title of their panel, which names network and optimizer, such as `le_net_cifar, SGD`.

    The title also names the data set and its target if there are several, so that all curves of a panel have one unit.
    """
    groups = by_configuration(without_copies(results))
    several = [path for path in ("data.dataset", "data.target") if differs(path, groups)]
    sorted_in: dict[str, list[list[Result]]] = {}
    for group in groups:
        told = [at(group[0], path) for path in ("model.architecture", "training.optimizer.type", *several)]
        sorted_in.setdefault(", ".join(str(each) for each in told if each is not None), []).append(group)
    return {title: _curves(members) for title, members in sorted_in.items()}


def _curves(groups: Sequence[list[Result]]) -> list[Curve]:
    curves: list[Curve] = []
    for group in groups:
        color, marker = style(method(group[0]))
        shared = sum(each.color == color for each in curves)
        curves.append(Curve(label(group, groups), group, color, marker, LINES[shared % len(LINES)]))
    return curves


def legend_note(curves: Sequence[Curve]) -> str:
    """Text that says what the bands show, and over how many seeds."""
    counts = sorted({len(curve.runs) for curve in curves})
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    if counts[-1] == 1:
        return "one seed"
    return f"mean and standard deviation over {seeds} seeds"


#: Keys of quantities by layer in a history record; the first one names the layers in the order of the network.
_BY_LAYER = ("gradient_angles", "norm_ratios", "angles")


def hidden(record: Record, key: str) -> dict[str, float]:
    """Known values of a quantity in the hidden layers of a record: all but the last, the output layer.

    The output layer is left out of headline angles, because every rule gives it the true gradient. Where only the
    output layer learns, there are none.
    """
    names = list(dict.fromkeys(name for each in _BY_LAYER for name in record.get(each) or {}))
    values = record.get(key) or {}
    return {name: value for name in names[:-1] if (value := values.get(name)) is not None}


def hidden_angles(runs: Sequence[Result], key: str) -> dict[str, float]:
    """Angle of every hidden layer after the last epoch, as mean over the runs; empty if it was not tracked."""
    found: dict[str, list[float]] = {}
    for run in runs:
        for name, value in (hidden(run["history"][-1], key) if run["history"] else {}).items():
            found.setdefault(name, []).append(value)
    return {name: statistics.fmean(values) for name, values in found.items()}
