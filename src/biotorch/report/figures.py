"""Learning curves and cost, and a function that writes all still figures."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from biotorch.errors import OtherRunError
from biotorch.experiment.results import Result
from biotorch.report.angles import draw_angles, draw_depth, draw_layers
from biotorch.report.series import Curve, Series, legend_note, over_epochs, panels
from biotorch.report.style import caption, frame, is_own, legend, logarithmic, new_figure, write_all
from biotorch.results.groups import method
from biotorch.training import Record
from biotorch.training.figures import judged, judged_figure


def draw_learning(results: Sequence[Result]) -> Figure | None:
    """Figure of what the runs are judged by, on the training set (thin) and on the validation set over epochs.

    It is the error of a classification and the loss of a regression, on a logarithmic axis. There is one panel for each
    network and optimizer. Returns None if nothing was trained.
    """
    shown = _trained(results)
    if not shown:
        return None
    figure, grid = _panels(shown)
    for axes, (_, curves) in zip(grid, shown.items(), strict=True):
        for curve in curves:
            validation, train = (over_epochs(curve.runs, _judged(split)) for split in ("validation", "train"))
            if validation is not None:
                curve.draw(axes, validation)
            if train is not None:
                axes.plot(train.x, train.mean, color=curve.color, linewidth=0.7, linestyle=curve.line, label="_train")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    thin = Line2D([], [], color="0.3", linewidth=0.7, label="training set")
    _finish(figure, grid, shown, [thin], "")
    return figure


def draw_cost(results: Sequence[Result]) -> Figure | None:
    """Figure of what the runs are judged by, on the validation set over seconds of training.

    There is one panel for each network and optimizer. Seconds count the epochs alone, without validation and metrics,
    on the machine that trained, so compare them only within one study. Returns None if nothing was trained.
    """
    shown = _trained(results)
    if not shown:
        return None
    figure, grid = _panels(shown)
    for axes, (_, curves) in zip(grid, shown.items(), strict=True):
        for curve in curves:
            value, seconds = over_epochs(curve.runs, _judged("validation")), _seconds(curve)
            if value is not None:
                x = [seconds[int(epoch)] for epoch in value.x]
                curve.draw(axes, Series(x, value.mean, value.spread))
        axes.set_xlabel("seconds of training")
    machines = sorted(
        {f"{run['environment']['device']}, CPU threads: {run['environment']['threads']}" for run in results}
    )
    _finish(figure, grid, shown, [], f"; times on {'; '.join(machines)}")
    return figure


def _trained(results: Sequence[Result]) -> dict[str, list[Curve]]:
    trained = [result for result in results if len(result["history"]) > 1]
    return panels(trained) if trained else {}


def _judged(split: str) -> Callable[[Record], float | None]:
    def value(record: Record) -> float | None:
        figures = record.get(split)
        return judged(figures) if figures else None

    return value


def _seconds(curve: Curve) -> list[float]:
    """Seconds of training up to the end of each epoch, averaged over the runs."""
    epochs = range(min(len(run["history"]) for run in curve.runs))
    sums = [sum(run["history"][epoch].get("seconds") or 0.0 for run in curve.runs) for epoch in epochs]
    return list(itertools.accumulate(each / len(curve.runs) for each in sums))


def _panels(shown: dict[str, list[Curve]]) -> tuple[Figure, list[Axes]]:
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = new_figure(2.0 + 3.6 * columns, 0.6 + 3.2 * rows)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    for axes, (title, curves) in zip(grid, shown.items(), strict=False):
        axes.set_title(title, fontsize="medium")
        axes.set_ylabel(judged_figure(curves[0].runs[0]["history"][-1]["validation"]).head)
        frame(axes)
    return figure, grid[: len(shown)]


def _finish(
    figure: Figure, grid: Sequence[Axes], shown: dict[str, list[Curve]], more: Sequence[Line2D], note: str
) -> None:
    for axes in grid:
        axes.margins(x=0.02)
        values = [
            value for line in axes.get_lines() for value in np.asarray(line.get_ydata(), float) if math.isfinite(value)
        ]
        if values and min(values) > 0:
            logarithmic(axes, min(values), max(values))
        else:
            axes.set_ylim(bottom=0)
    legend(figure, grid, more)
    seeds = legend_note([curve for curves in shown.values() for curve in curves])
    caption(figure, f"validation set: {seeds}{note}")


def draw_all(results: Sequence[Result], folder: Path, formats: Sequence[str] = ("png",)) -> list[Path]:
    """Write the figures into a folder and return their paths.

    The figures are `learning`, `cost`, `angles`, `depth`, and for every method `layers_<method>` (figures 2 to 4 of the
    paper). A figure whose data was not tracked is left out, and its file from an earlier call is removed.

    Args:
        results: any runs.
        folder: folder of the figures, created if missing.
        formats: any of png, svg and pdf.

    Raises:
        OtherRunError: the folder holds a file that would be replaced, and that is no figure of ours.

    Examples:
        >>> results = biotorch.experiment.run(biotorch.experiment.read("study.yaml"))
        >>> [path.name for path in biotorch.report.draw_all(list(results.values()), Path("figures"))]
        ['learning.png', 'cost.png', 'angles.png', 'depth.png', 'layers_backpropagation.png', 'layers_fa.png']
    """
    figures = {
        "learning": draw_learning(results),
        "cost": draw_cost(results),
        "angles": draw_angles(results),
        "depth": draw_depth(results),
        **{f"layers_{name}": draw_layers(results, name) for name in dict.fromkeys(map(method, results))},
    }
    for name, each in itertools.product([name for name, figure in figures.items() if figure is not None], formats):
        path = folder / f"{name}.{each}"
        if path.exists() and not is_own(path):
            raise OtherRunError(f"{path} was not drawn by this version of biotorch; move it, or choose another folder")
    written: list[Path] = []
    for name, figure in figures.items():
        paths = [folder / f"{name}.{each}" for each in formats]
        if figure is None:
            for path in filter(is_own, paths):
                path.unlink()
        else:
            written += write_all(figure, folder, name, formats)
    return written
