"""Table and figure of the smallest perturbations that attacks have found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from biotorch._tables import Table
from biotorch.experiment.results import Result
from biotorch.report.robustness import NORMS, networks_of
from biotorch.report.style import frame, new_figure, write
from biotorch.results.groups import by_configuration, in_order, label
from biotorch.robustness.attacks.attempt import Gradient
from biotorch.robustness.nearest import Distances, nearest

_NAMES = {"deepfool": "DeepFool", "fab": "FAB", "cw": "C&W"}
GRADIENTS: dict[Gradient, str] = {"feedback": "the rule's feedback gradient", "true": "true gradient"}


def smallest_table(studies: Sequence[Mapping[str, Any]]) -> Table | None:
    """Table of medians: one row per study, one column per attack and gradient. None without smallest perturbations.

    A network with only one gradient has the same figure in the columns of both.

    Args:
        studies: contents of study.json files.
    """
    studies = [each for each in in_order(studies, dict) if each.get("smallest")]
    if not studies:
        return None
    groups = by_configuration([dict(each) for each in studies])
    found = [_distances(each) for each in studies]
    keys = dict.fromkeys((each.attack, each.gradient) for one in found for each in one)
    columns = [key for name in _NAMES for gradient in GRADIENTS if (key := (name, gradient)) in keys]
    rows = []
    for study, one in zip(studies, found, strict=True):
        [group] = [each for each in groups if any(member["study"] is study["study"] for member in each)]
        seed = f", seed {study['config']['experiment']['seed']}" if len(group) > 1 else ""
        cells = (_median(one, name, gradient) for name, gradient in columns)
        rows.append([label(group, groups) + seed, f"{study['study']['clean_accuracy']:.1f}", *cells])
    norms = " and ".join(dict.fromkeys(NORMS[one[0].norm].strip(" ()") for one in found))
    counts = sorted({len(each.distances) for one in found for each in one})
    return Table(
        title=f"Smallest perturbations: median distance ({norms})",
        header=["network", "clean", *(f"{_NAMES[name]}, {gradient} gradient" for name, gradient in columns)],
        rows=rows,
        notes=[
            f"{' and '.join(f'{n:,}' for n in counts)} test images; medians over those that are right without an "
            "attack (clean, %). -: the attack breaks less than half of them. Smaller is easier to break."
        ],
    )


def _distances(study: Mapping[str, Any]) -> list[Distances]:
    return [Distances.from_json(each) for each in study["smallest"]]


def _along(found: Sequence[Distances], gradient: Gradient) -> list[Distances]:
    """Distances along a gradient; all of them for a network with only one gradient."""
    return [each for each in found if each.gradient == gradient] or list(found)


def _median(found: Sequence[Distances], attack: str, gradient: Gradient) -> str:
    medians = [each.median for each in _along(found, gradient) if each.attack == attack]
    return f"{medians[0]:.3g}" if medians and medians[0] is not None else "-"


def smallest_figure(studies: Sequence[Result], path: Path) -> Path | None:
    """Write the figure of `draw_smallest` and return its path, or None if there is nothing to draw.

    Examples:
        >>> from biotorch.experiment.measure import attack_run
        >>> results = biotorch.experiment.run(biotorch.experiment.read("study.yaml"))
        >>> study, _ = attack_run(Path("runs/example/rule=fa,seed=0"), [("attacks.smallest", True)])
        >>> biotorch.report.smallest_figure([study], Path("smallest.png")).is_file()
        True
    """
    figure = draw_smallest(studies)
    return None if figure is None else write(figure, path)


def draw_smallest(studies: Sequence[Result]) -> Figure | None:
    """Accuracy over epsilon, as it follows from the smallest perturbation of each image by any attack.

    One panel for each gradient that the attacks follow. Curves of several seeds have the same look. Returns None if no
    study has smallest perturbations.
    """
    studies = [each for each in studies if each.get("smallest")]
    if not studies:
        return None
    networks = networks_of(studies)
    several = any(each.gradient == "feedback" for study in studies for each in _distances(study))
    gradients: list[Gradient] = ["feedback", "true"] if several else ["true"]
    figure = new_figure(1 + 4 * len(gradients), 4.2)
    grid = figure.subplots(1, len(gradients), sharex=True, sharey=True, squeeze=False)[0]
    for axes, gradient in zip(grid, gradients, strict=True):
        for network in networks:
            for number, study in enumerate(network.studies):
                epsilons, accuracies = distance_curve(study, gradient)
                name = network.name if number == 0 else f"_{network.name}"
                look = {**network.look, "marker": "", "linewidth": 1.4}
                axes.step(epsilons, accuracies, where="post", label=name, **look)
        axes.set_title(GRADIENTS[gradient] if several else "", fontsize="medium")
        axes.set_xlabel("ε" + NORMS[_distances(studies[0])[0].norm])
        axes.set_ylim(0, 100)
        axes.set_xlim(left=0)
        frame(axes)
    grid[0].set_ylabel("accuracy (%)")
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    return figure


def distance_curve(study: Mapping[str, Any], gradient: Gradient) -> tuple[list[float], list[float]]:
    """Epsilons at which an image is lost, from 0 on, and the accuracy (%) that each of them leaves."""
    found = _distances(study)
    distances = nearest(_along(found, gradient))
    epsilons = sorted({0.0, *filter(math.isfinite, distances.tolist())})
    return epsilons, [100 * float((distances > each).double().mean()) for each in epsilons]
