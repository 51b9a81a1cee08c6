"""Figures of alignment angles (W to B), gradient angles (rule's gradient to true gradient) and norm ratios."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from biotorch.experiment.results import Result
from biotorch.report.series import Curve, Series, hidden, legend_note, over_epochs, panels
from biotorch.report.style import caption, frame, label_lines, legend, new_figure, write
from biotorch.results.groups import method
from biotorch.training import Record

#: Keys of a history record, with the label of the axis.
_ROWS = {"angles": "alignment angle between W and B (°)", "norm_ratios": "norm of B / norm of W"}

#: Titles of the panels of the overview, by key of a history record.
_OVERVIEW = {
    "gradient_angles": "gradient angle, rule's gradient to true gradient",
    "angles": "alignment angle, W to B",
}


def angle_figure(results: Sequence[Result], path: Path) -> Path | None:
    """Write the figure of `draw_angles` and return its path, or None if no angle was tracked.

    Examples:
        >>> results = biotorch.experiment.run(biotorch.experiment.read("study.yaml"))
        >>> biotorch.report.angle_figure(list(results.values()), Path("angles.png")).is_file()
        True
    """
    figure = draw_angles(results)
    return None if figure is None else write(figure, path)


def draw_angles(results: Sequence[Result]) -> Figure | None:
    """Figure of the gradient angle (rule's gradient to true gradient) and the alignment angle (W to B) over epochs.

    Thick lines are means over the hidden layers, thin lines in panels of the gradient angle the hidden layer with the
    largest angle. All are means over seeds, bands their standard deviation. There is one row of panels for each network
    and optimizer. An angle that no run has is left out. Returns None if no angle of a hidden layer was tracked.
    """
    found = panels(results)
    keys = [key for key in _OVERVIEW if any(_hidden(curves, key) for curves in found.values())]
    shown = {title: curves for title, curves in found.items() if any(_hidden(curves, key) for key in keys)}
    if not keys:
        return None
    figure = new_figure(2.5 + 3.5 * len(keys), 0.6 + 3.4 * len(shown))
    grid = figure.subplots(len(shown), len(keys), sharey=True, squeeze=False)
    for row, (title, curves) in zip(grid, shown.items(), strict=True):
        for axes, key in zip(row, keys, strict=True):
            for curve in curves:
                if (series := over_epochs(curve.runs, _mean_of(key))) is not None:
                    curve.draw(axes, series, clip_on=False)
                worst = over_epochs(curve.runs, _worst_of(key))
                if key == "gradient_angles" and worst is not None:
                    look = {"color": curve.color, "linewidth": 0.7, "linestyle": curve.line}
                    axes.plot(worst.x, worst.mean, **look, label="_worst")
            if not _hidden(curves, key):
                why = "not tracked" if key == "gradient_angles" else "direct rules have no B\nin the shape of W"
                axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center", color="0.4")
                axes.set_xlim(0, max(len(run["history"]) for run in _runs(curves)) - 1)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.margins(x=0.02)
            axes.set_title("\n".join(filter(None, [title, _OVERVIEW[key]])), fontsize="medium")
        row[0].set_ylabel("degrees, mean over hidden layers")
    _as_angles(grid.flat)
    for axes in grid[-1]:
        axes.set_xlabel("epoch")
    thin = Line2D([], [], color="0.3", linewidth=0.7, label="worst hidden layer")
    legend(figure, grid.flat, [thin] if "gradient_angles" in keys else [])
    caption(figure, legend_note(_curves_of(shown)))
    return figure


def draw_layers(results: Sequence[Result], name: str) -> Figure | None:
    """Figures 2 to 4 of the paper: alignment angle (top) and norm ratio (bottom) of every layer over epochs.

    There is one column for each network and optimizer. Layers are coloured by depth, from the input (dark) to the
    output (light), and named at the ends of their lines. Lines are means over seeds, bands their standard deviation.
    A direct rule has only norm ratios.

    Args:
        results: runs of any rules.
        name: method to show, such as `fa`.

    Returns:
        The figure, or None if neither quantity was tracked under this method.
    """
    chosen = [result for result in results if method(result) == name]
    found = panels(chosen) if chosen else {}
    shown = [
        (title if len(curves) == 1 else f"{title}\n{curve.name}", curve)
        for title, curves in found.items()
        for curve in curves
        if _tracked([curve], *_ROWS)
    ]
    rows = [key for key in _ROWS if any(_tracked([curve], key) for _, curve in shown)]
    if not rows:
        return None
    figure = new_figure(max(5.5, 1.2 + 4.2 * len(shown)), 0.8 + 2.9 * len(rows))
    grid = figure.subplots(len(rows), len(shown), sharex="col", squeeze=False)
    for column, (title, curve) in enumerate(shown):
        layers = _layers(curve.runs, rows)
        colors = _depth_colors(layers)
        for row, key in enumerate(rows):
            axes = grid[row, column]
            for layer, color in zip(layers, colors, strict=True):
                if (series := over_epochs(curve.runs, _of(key, layer))) is not None:
                    _line(axes, series, color, layer)
            axes.set_ylabel(_ROWS[key] if column == 0 else "")
            axes.set_title(title, fontsize="medium")
            axes.margins(x=0.02)
            frame(axes)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        grid[-1, column].set_xlabel("epoch")
    if rows[0] == "angles":
        _as_angles(grid[0])
    for axes in grid.flat:
        label_lines(axes)
    figure.suptitle(f"{name}, every layer ({legend_note([curve for _, curve in shown])})", fontsize="medium")
    return figure


def draw_depth(results: Sequence[Result]) -> Figure | None:
    """Figure of the gradient angle after the last epoch in every layer, from the input to the output.

    There is one panel for each network and optimizer. Returns None if the angle was not tracked.
    """
    shown = {title: curves for title, curves in panels(results).items() if _tracked(curves, "gradient_angles")}
    if not shown:
        return None
    layers = {title: _layers(_runs(curves), ["gradient_angles"]) for title, curves in shown.items()}
    widths = [max(3.0, 0.22 * len(each)) for each in layers.values()]
    figure = new_figure(2.5 + sum(widths), 4.2)
    grid = figure.subplots(1, len(shown), sharey=True, squeeze=False, width_ratios=widths)[0]
    for axes, (title, curves) in zip(grid, shown.items(), strict=True):
        names = layers[title]
        for curve in curves:
            series = _through(curve.runs, names)
            if series is not None:
                curve.draw(axes, series, markers=len(names))
        axes.set_xticks(range(len(names)), labels=names, rotation=90, fontsize="x-small")
        axes.set_title(title, fontsize="medium")
    _as_angles(grid)
    grid[0].set_ylabel("gradient angle (°)")
    legend(figure, grid)
    note = legend_note(_curves_of(shown))
    caption(figure, f"layer, from the input to the output; after the last epoch; {note}")
    return figure


def _tracked(curves: Sequence[Curve], *keys: str) -> bool:
    return any(record.get(key) for curve in curves for run in curve.runs for record in run["history"] for key in keys)


def _hidden(curves: Sequence[Curve], key: str) -> bool:
    return any(hidden(record, key) for run in _runs(curves) for record in run["history"])


def _mean_of(key: str) -> Callable[[Record], float | None]:
    def mean(record: Record) -> float | None:
        values = hidden(record, key).values()
        return sum(values) / len(values) if values else None

    return mean


def _worst_of(key: str) -> Callable[[Record], float | None]:
    return lambda record: max(hidden(record, key).values(), default=None)


def _of(key: str, layer: str) -> Callable[[Record], float | None]:
    return lambda record: _values(record, key).get(layer)


def _values(record: Record, key: str) -> Mapping[str, float | None]:
    return record.get(key) or {}


def _layers(runs: Sequence[Result], keys: Sequence[str]) -> list[str]:
    """Names of all tracked layers, in the order of the network."""
    records = [record for run in runs for record in run["history"]]
    return list(dict.fromkeys(name for record in records for key in keys for name in _values(record, key)))


def _runs(curves: Sequence[Curve]) -> list[Result]:
    return [run for curve in curves for run in curve.runs]


def _curves_of(shown: Mapping[str, Sequence[Curve]]) -> list[Curve]:
    return [curve for curves in shown.values() for curve in curves]


def _through(runs: Sequence[Result], names: Sequence[str]) -> Series | None:
    """Gradient angles after the last epoch, as a series over layers."""
    as_history = [
        {**run, "history": [{"value": _values(run["history"][-1], "gradient_angles").get(name)} for name in names]}
        for run in runs
        if run["history"]
    ]
    return over_epochs(as_history, lambda record: record["value"]) if as_history else None


def _depth_colors(layers: Sequence[str]) -> list[tuple[float, float, float, float]]:
    """One colour per layer, dark to light. The colours stop before yellow, which cannot be seen on white."""
    colormap = mpl.colormaps["viridis"].resampled(max(2, round(1.15 * len(layers))))
    return [colormap(number) for number in range(len(layers))]


def _line(axes: Axes, series: Series, color: tuple[float, float, float, float], name: str) -> None:
    marker = "o" if len(series.x) == 1 else None
    axes.plot(series.x, series.mean, color=color, linewidth=1.2, marker=marker, markersize=4, label=name)
    low = [mean - spread for mean, spread in zip(series.mean, series.spread, strict=True)]
    high = [mean + spread for mean, spread in zip(series.mean, series.spread, strict=True)]
    axes.fill_between(series.x, low, high, color=color, alpha=0.12, linewidth=0)


def _as_angles(panels: Iterable[Axes]) -> None:
    """Give all panels one axis around the angles in them and 90 degrees, where there is a line."""
    panels = list(panels)
    for axes in panels:
        axes.axhline(90, color="0.4", linewidth=0.9, linestyle=":", label="_right angle")
        frame(axes)
    low, high = min(axes.dataLim.y0 for axes in panels), max(axes.dataLim.y1 for axes in panels)
    step = 15 if high - low <= 100 else 30
    bottom, top = max(0, step * math.floor(low / step)), step * math.ceil(high / step)
    for axes in panels:
        axes.set_ylim(bottom - 3, max(top, 90) + 3)
        axes.set_yticks(range(bottom, max(top, 90) + 1, step))
