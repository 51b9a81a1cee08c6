"""Every still figure that some results have something to show for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from biotorch.experiment.results import Result
from biotorch.report.angles import draw_angles, draw_depth, draw_layers
from biotorch.report.curves import draw_cost, draw_learning
from biotorch.report.groups import method
from biotorch.report.style import write_all


def draw_all(results: Sequence[Result], folder: Path, formats: Sequence[str] = ("png",)) -> list[Path]:
    """Write the figures into a folder and return their paths.

    They are `learning`, `cost`, `angles`, `depth`, and for every method `layers_<method>` (figures 2 to 4 of the
    paper). What was not tracked is not drawn, and a figure of that name from before is removed.

    Args:
        results: of any runs.
        folder: is made where it is missing.
        formats: among png, svg and pdf.
    """
    figures = {
        "learning": draw_learning(results),
        "cost": draw_cost(results),
        "angles": draw_angles(results),
        "depth": draw_depth(results),
        **{f"layers_{name}": draw_layers(results, name) for name in dict.fromkeys(map(method, results))},
    }
    written: list[Path] = []
    for name, figure in figures.items():
        if figure is None:
            for each in formats:
                (folder / f"{name}.{each}").unlink(missing_ok=True)
        else:
            written += write_all(figure, folder, name, formats)
    return written
