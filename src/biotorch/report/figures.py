"""Still figures, readable in greyscale and by the colour-blind; a method has one colour everywhere."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from biotorch.experiment.results import Result
from biotorch.report.groups import by_configuration, label, mean_angle, method

#: Okabe and Ito's colours, and a marker each for greyscale.
STYLE: dict[str, tuple[str, str]] = {
    "backpropagation": ("#000000", "o"),
    "fa": ("#D55E00", "s"),
    "dfa": ("#0072B2", "^"),
    "usf": ("#009E73", "D"),
    "brsf": ("#CC79A7", "v"),
    "frsf": ("#E69F00", "P"),
    "shallow": ("#999999", "X"),
}
_OTHER = ("#56B4E9", "*")


def style(name: str) -> tuple[str, str]:
    """Colour and marker of a method."""
    return STYLE.get(name, _OTHER)


def angle_figure(results: Sequence[Result], path: Path) -> Path:
    """Write a PNG of the angles over epochs and return its path.

    Left the angle between W and B, right that between update and true gradient, both as means over
    layers; lines are means over seeds, bands their standard deviation.
    """
    figure = Figure(figsize=(9.5, 4.2), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    groups = by_configuration(results)
    for group in groups:
        _curve(left, group, "angles", label(group, groups))
        _curve(right, group, "gradient_angles", label(group, groups))
    left.set_title("weights: angle between W and B")
    right.set_title("updates: angle to the true gradient")
    left.set_ylabel("degrees, mean over layers")
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.axhline(90, color="0.6", linewidth=0.8, linestyle=":")
        frame(axes)
    left.set_ylim(-3, 100)
    left.set_yticks(range(0, 91, 15))
    lines = {line.get_label(): line for axes in (left, right) for line in axes.get_lines()}
    shown = [str(name) for group in groups if (name := label(group, groups)) in lines]
    figure.legend([lines[name] for name in shown], shown, loc="outside right center", frameon=False)
    return write(figure, path)


def frame(axes: Axes) -> None:
    """A light grid, and no more of a frame than the two axes."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def write(figure: Figure, path: Path) -> Path:
    """Save a figure, making its folder, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _curve(axes: Axes, group: Sequence[Result], key: str, name: str) -> None:
    epochs = range(min(len(result["history"]) for result in group))
    points = [
        (epoch, values)
        for epoch in epochs
        if (values := [angle for result in group if (angle := mean_angle(result, key, epoch)) is not None])
    ]
    if not points:
        return
    x = [epoch for epoch, _ in points]
    mean = [statistics.fmean(values) for _, values in points]
    spread = [statistics.stdev(values) if len(values) > 1 else 0.0 for _, values in points]
    color, marker = style(method(group[0]))
    axes.plot(x, mean, color=color, marker=marker, markersize=4, linewidth=1.5, label=name, clip_on=False)
    low = [m - s for m, s in zip(mean, spread, strict=True)]
    high = [m + s for m, s in zip(mean, spread, strict=True)]
    axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
