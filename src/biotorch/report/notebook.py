"""Figures in notebooks: the forms in which runs and studies are given, and how a notebook shows a figure."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
from matplotlib.figure import Figure

from biotorch.experiment.results import Result, load_results, load_study
from biotorch.results.collecting import Collection, collect
from biotorch.robustness import Study

#: Measured runs; the docstring of `biotorch.plots` lists the forms.
Source: TypeAlias = Path | str | pd.DataFrame | Sequence[Mapping[str, Any]] | Mapping[str, Any]
#: Robustness studies: a folder or a frame of runs that were attacked, or studies by rule.
Studies: TypeAlias = Path | str | pd.DataFrame | Mapping[str, Study]

#: Dots per inch in a notebook; `figure.savefig` writes the 300 of the reports.
_DPI = 100
#: Name of a history that is given without one.
_UNNAMED = "network"


def runs_of(source: Any) -> list[Result]:
    """The runs of a source, in the form of results.json as far as figures need it."""
    if isinstance(source, Path | str):
        return _collected(source).results
    if isinstance(source, pd.DataFrame) and "path" in source:
        return [_read(Path(each), load_results(Path(each))) for each in source["path"]]
    if isinstance(source, pd.DataFrame):
        source = source.to_dict("records")
    if isinstance(source, Mapping):
        named = {str(name): each if _is_list(each, Sequence) else [each] for name, each in source.items()}
    else:
        named = {_UNNAMED: [source]}
    if not named:
        raise ValueError("source: there are no runs in it")
    return [
        _as_result(name, seed, _checked(history)) for name, each in named.items() for seed, history in enumerate(each)
    ]


def _collected(folder: Path | str) -> Collection:
    found = collect(folder)
    for problem in found.problems:
        warnings.warn(problem, stacklevel=4)
    return found


def _read(folder: Path, found: dict[str, Any] | None) -> dict[str, Any]:
    if found is None:
        raise ValueError(f"source: {folder} does not have the results any more; load the frame again")
    return found


def _is_list(value: Any, kind: type) -> bool:
    """Whether a value is a list or tuple of `kind`, and not empty."""
    return isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(each, kind) for each in value)


def _checked(history: Any) -> list[dict[str, Any]]:
    if not _is_list(history, Mapping):
        raise ValueError(f"source: a folder, a frame or a history (list of records) is needed, not {history!r:.80}")
    known = {"angles", "gradient_angles", "norm_ratios", "train", "validation"}
    if not any(known & each.keys() for each in history):
        raise ValueError(
            "source: no record of the history has one of the keys angles, gradient_angles, norm_ratios, train, "
            'validation; write history.append({"angles": biotorch.metrics.alignment_angles(model)}), for example'
        )
    return [dict(each) for each in history]


def _as_result(name: str, seed: int, history: list[dict[str, Any]]) -> Result:
    """A history in the form of a run's result; `name` stands in the place of the rule."""
    return {**_origin(name, seed), "history": history, "state_hash": f"{name} {seed}"}


def _origin(name: str, seed: int) -> Result:
    model = {"architecture": None, "mode": {"type": name}, "train_only": None}
    return {"config": {"experiment": {"seed": seed}, "data": {"dataset": None}, "model": model, "training": {}}}


def studies_of(source: Any) -> list[dict[str, Any]]:
    """The robustness studies of a source, in the form of study.json as far as figures need it."""
    if isinstance(source, Path | str):
        return list(_collected(source).studies)
    if isinstance(source, pd.DataFrame) and "path" in source:
        return [each for path in source["path"] if (each := load_study(Path(path))) is not None]
    if not isinstance(source, Mapping) or not all(isinstance(each, Study) for each in source.values()):
        raise ValueError('source: a folder, a frame or studies by rule ({"fa": study}) are needed')
    return [
        {**_origin(name, 0), "study": {"measurements": [one.to_json() for one in each.measurements]}}
        for name, each in source.items()
    ]


# Figures in notebooks ----------------------------------------------------------------------------


def shown(figure: Figure | None, missing: str = "", x: str = "epoch") -> Figure:
    """The figure, ready for a notebook. Raise ValueError, which says what is missing, if there is none."""
    if figure is None:
        raise ValueError(f"source: {missing}")
    for axes in figure.axes:
        if axes.get_xlabel() == "epoch":
            axes.set_xlabel(x)
    figure.set_dpi(_DPI)
    _register()
    return figure


def titled(figure: Figure, source: Studies, title: str) -> Figure:
    """The figure with the title, which studies need that know no architecture and no data set."""
    if isinstance(source, Mapping):
        figure.suptitle(title)
    return figure


def _register() -> None:
    """Teach the notebook that is running, if any, to show figures; without pyplot it would print their names only."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if shell is not None:
        pictures = shell.display_formatter.formatters["image/png"]
        if Figure not in pictures.type_printers:
            pictures.for_type(Figure, _png)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=figure.dpi)
    return file.getvalue()
