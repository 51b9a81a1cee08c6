"""Figures of what stands beside attacks: accuracy under corruptions, and reliability diagrams."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from biotorch.experiment.results import Result
from biotorch.report.robustness import Network, networks_of
from biotorch.report.series import banded
from biotorch.report.style import frame, new_figure, write
from biotorch.robustness.calibration import BINS

#: Name of the mean over all kinds of corruptions.
ALL_KINDS = "mean of all kinds"

#: x, mean, and lower and upper end of the band.
Curve = tuple[list[float], list[float], list[float], list[float]]


def kinds_of(studies: Sequence[Result]) -> list[str]:
    """Kinds of corruptions that any of the studies has measured."""
    return list(dict.fromkeys(kind for each in studies for kind in _part(each, "corruptions").get("accuracy", {})))


def severity_curve(network: Network, kind: str, figure: str = "accuracy") -> Curve | None:
    """Accuracy or calibration error (%) over the severity: mean and standard deviation over the seeds.

    Severity 0 stands for the images themselves. Returns None if the network's studies have not measured it.

    Args:
        network: studies of one configuration.
        kind: kind of corruption, or `ALL_KINDS`.
        figure: `accuracy` or `ece`.
    """
    found = []
    for study in network.studies:
        measured, calibration = _part(study, "corruptions"), _part(study, "calibration")
        grid = measured.get(figure, {})
        rows = [*grid.values()] if kind == ALL_KINDS else [grid[kind]] if kind in grid else []
        clean = measured.get("clean_accuracy") if figure == "accuracy" else calibration.get("ece")
        if rows:
            means = {int(each): statistics.fmean(row[each] for row in rows) for each in rows[0]}
            found.append(means if clean is None else {0: clean, **means})
    if not found:
        return None
    x = sorted(set.intersection(*map(set, found)))
    return [float(each) for each in x], *banded([[each[at] for each in found] for at in x])


def reliability_curve(network: Network) -> tuple[list[float], list[float], list[float]] | None:
    """Mean confidence, accuracy and share of the images of each bin (%), all seeds together; None if not measured."""
    bins: dict[int, list[tuple[int, float, float]]] = {}
    for study in network.studies:
        for count, accuracy, confidence in _part(study, "calibration").get("bins", ()):
            bins.setdefault(math.ceil(confidence * BINS / 100), []).append((count, accuracy, confidence))
    if not bins:
        return None
    pooled = [bins[each] for each in sorted(bins)]
    counts = [sum(each[0] for each in part) for part in pooled]
    accuracies, confidences = (
        [sum(each[0] * each[place] for each in part) / count for part, count in zip(pooled, counts, strict=True)]
        for place in (1, 2)
    )
    return confidences, accuracies, [100 * count / sum(counts) for count in counts]


def _part(study: Result, name: str) -> Mapping[str, Any]:
    part: Mapping[str, Any] = study.get(name) or {}
    return part


def corruption_figure(studies: Sequence[Result], path: Path) -> Path | None:
    """Write the figure of `draw_corruptions` and return its path, or None if no study has measured corruptions.

    Examples:
        >>> from biotorch.experiment.measure import attack_run
        >>> results = biotorch.experiment.run(biotorch.experiment.read("study.yaml"))
        >>> study, _ = attack_run(Path("runs/example/rule=fa,seed=0"), [("attacks.corruptions", True)])
        >>> biotorch.report.corruption_figure([study], Path("corruption.png")).is_file()
        True
    """
    figure = draw_corruptions(studies)
    return None if figure is None else write(figure, path)


def calibration_figure(studies: Sequence[Result], path: Path) -> Path | None:
    """Write the figure of `draw_calibration` and return its path, or None if no study has measured calibration.

    Examples:
        >>> from biotorch.experiment.measure import attack_run
        >>> results = biotorch.experiment.run(biotorch.experiment.read("study.yaml"))
        >>> study, _ = attack_run(Path("runs/example/rule=fa,seed=0"), [("attacks.calibration", True)])
        >>> biotorch.report.calibration_figure([study], Path("calibration.png")).is_file()
        True
    """
    figure = draw_calibration(studies)
    return None if figure is None else write(figure, path)


def draw_corruptions(studies: Sequence[Result]) -> Figure | None:
    """Accuracy over the severity: one panel for the mean of all kinds of corruptions, and one for each kind.

    Severity 0 stands for the images themselves. With several seeds, a curve is their mean, and the band is the standard
    deviation. Returns None if no study has measured corruptions.
    """
    kinds = kinds_of(studies)
    if not kinds:
        return None
    networks = networks_of(studies)
    rows = math.ceil((1 + len(kinds)) / 4)
    figure = new_figure(9.0, 1.2 + 1.7 * rows)
    grid = figure.subplots(rows, 4, sharex=True, sharey=True, squeeze=False)
    for axes, kind in zip(grid.flat, [ALL_KINDS, *kinds], strict=False):
        for network in networks:
            if (curve := severity_curve(network, kind)) is not None:
                _line(axes, network, curve)
        axes.set_title(kind.replace("_", " "), fontsize="small", fontweight="bold" if kind == ALL_KINDS else None)
        axes.set_ylim(0, 100)
        frame(axes)
        axes.tick_params(labelbottom=True, labelsize="small")
        axes.set_xticks(range(6))
    for axes in grid.flat[1 + len(kinds) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel("accuracy (%)", fontsize="small")
    _legend(figure, networks, "x axis: severity, where 0 is without corruption")
    return figure


def draw_calibration(studies: Sequence[Result]) -> Figure | None:
    """Reliability diagram, and the calibration error over the severity of corruptions if they were measured.

    The diagram shows the accuracy over the mean confidence of each bin; on the diagonal they agree, and below it a
    network is overconfident. Returns None if no study has measured calibration.
    """
    networks = networks_of(studies)
    curves = [(network, curve) for network in networks if (curve := reliability_curve(network)) is not None]
    if not curves:
        return None
    corrupted = bool(kinds_of(studies))
    figure = new_figure(8.0 if corrupted else 4.4, 4.2)
    diagram, *more = figure.subplots(1, 1 + corrupted, squeeze=False)[0]
    diagram.plot([0, 100], [0, 100], color="0.45", linestyle=":", linewidth=1)
    for network, (confidence, accuracy, share) in curves:
        look = {key: network.look[key] for key in ("color", "marker")}
        diagram.plot(confidence, accuracy, color=look["color"], linewidth=0.8, alpha=0.6)
        diagram.scatter(confidence, accuracy, [8 + 1.2 * each for each in share], **look, clip_on=False, zorder=3)
        diagram.plot([], [], **network.look, linewidth=0.8, label=network.name)
    diagram.set_title("without corruption", fontsize="medium")
    diagram.set(xlabel="confidence (%)", ylabel="accuracy (%)", xlim=(0, 100), ylim=(0, 100), aspect="equal")
    for axes in more:
        for network in networks:
            if (errors := severity_curve(network, ALL_KINDS, "ece")) is not None:
                _line(axes, network, errors)
        axes.set_title("under corruptions, mean of all kinds", fontsize="medium")
        axes.set(xlabel="severity, where 0 is without corruption", ylabel="expected calibration error (%)")
        axes.set_ylim(bottom=0)
    for axes in (diagram, *more):
        frame(axes)
    _legend(
        figure,
        networks,
        ("left: " if corrupted else "") + "one marker per bin of the confidence, larger for more images",
    )
    return figure


def _line(axes: Axes, network: Network, curve: Curve) -> None:
    x, mean, low, high = curve
    axes.plot(x, mean, **network.look, markersize=3.5, linewidth=1.3, label=network.name, clip_on=False)
    axes.fill_between(x, low, high, color=network.look["color"], alpha=0.15, linewidth=0)


def _legend(figure: Figure, networks: Sequence[Network], told: str) -> None:
    several = max(network.seeds for network in networks) > 1
    lines = {str(line.get_label()): line for axes in figure.axes for line in axes.get_lines()}
    handles = [lines[network.name] for network in networks if network.name in lines]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), 5),
        frameon=False,
        fontsize="small",
        title=told + ("; bands: standard deviation over seeds" if several else ""),
        title_fontsize="small",
    )
