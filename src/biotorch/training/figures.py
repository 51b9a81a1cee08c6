"""Figures of a network on a split: how they are named and written, and which one a run is judged by."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from biotorch.data import Task

#: Figures of a split by name, as `evaluate` returns them. A figure that is not defined is NaN, or None once written.
Figures = Mapping[str, float | None]


class Figure(NamedTuple):
    """Words for a figure: its name, its unit, and its decimals; None stands for four significant digits."""

    name: str
    unit: str = ""
    decimals: int | None = 2

    @property
    def head(self) -> str:
        """Head of a column or label of an axis, such as `error (%)`."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def cell(self, values: Sequence[float | None]) -> str:
        """Mean and standard deviation of the values of several runs; a dash if one of them is missing."""
        known = [value for value in values if value is not None and math.isfinite(value)]
        if not known or len(known) < len(values):
            return "-"
        mean = statistics.fmean(known)
        decimals = _decimals(mean) if self.decimals is None else self.decimals
        return f"{mean:.{decimals}f}" + (f" ± {statistics.stdev(known):.{decimals}f}" if len(known) > 1 else "")


def _decimals(value: float) -> int:
    return max(0, 3 - math.floor(math.log10(abs(value)))) if value else 2


#: Figures that tables and the display show, in their order. `loss` is in addition to them.
SHOWN = {
    "error": Figure("error", "%"),
    "perplexity": Figure("perplexity"),
    "r2": Figure("R²", decimals=3),
    "rmse": Figure("RMSE", decimals=None),
}

#: Figure that a run is judged by, the lower the better: by it the best epoch is chosen, a training stops early, a
#: learning rate falls on a plateau or is searched for. It is the loss in a regression, because an RMSE in original
#: units would let the target with the largest numbers decide, and R² is not defined for a constant target.
_JUDGED: dict[Task, str] = {"classification": "error", "regression": "loss"}


def task_of(figures: Figures) -> Task:
    """Task of the network that these figures belong to."""
    return "regression" if "rmse" in figures else "classification"


def judged_by(figures: Figures) -> str:
    """Name of the figure that a run with these figures is judged by."""
    return _JUDGED[task_of(figures)]


def judged(figures: Mapping[str, float]) -> float:
    """Value of the figure that a run is judged by; the lower the better."""
    return figures[judged_by(figures)]


def judged_figure(figures: Figures) -> Figure:
    """Words for the figure that a run with these figures is judged by."""
    return SHOWN.get(judged_by(figures), Figure("loss", decimals=4))


def told(figures: Figures) -> str:
    """Line of all shown figures, such as `error 3.20 %` or `R² 0.481, RMSE 53.21`."""
    return ", ".join(
        f"{figure.name} {figure.cell([figures[key]])}" + (f" {figure.unit}" if figure.unit else "")
        for key, figure in SHOWN.items()
        if key in figures
    )
