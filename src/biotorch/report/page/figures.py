"""Data of the interactive figures; the browser averages over the seeds and layers that the reader chooses."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from biotorch.experiment.results import Result
from biotorch.report.page.overview import facets_of
from biotorch.report.reliability import ALL_KINDS, kinds_of, reliability_curve, severity_curve
from biotorch.report.robustness import (
    BLACK_BOX,
    WHITE_BOX,
    Measurement,
    Network,
    curve_of,
    networks_of,
    of_attack,
    variants_of,
    words_of,
)
from biotorch.report.series import Curve, panels
from biotorch.report.smallest import GRADIENTS, distance_curve
from biotorch.results.collecting import Collection
from biotorch.robustness.attacks.attempt import Gradient
from biotorch.robustness.measurement import interval
from biotorch.training.figures import SHOWN

#: Bytes of figure data: the page's limit of 8 MB less plotly.js and the tables of a hundred runs.
BUDGET = 2_000_000

#: Layerwise quantities by their key in a history record, with the label of the axis.
LAYERWISE = {
    "gradient_angles": "gradient angle between the rule's gradient and the true one (°)",
    "angles": "alignment angle between W and B (°)",
    "norm_ratios": "norm of B / norm of W",
}

#: Plotly's names of matplotlib's markers.
_SYMBOLS = {
    "o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down", "P": "cross", "X": "x",
    "h": "hexagon", "<": "triangle-left", ">": "triangle-right", "d": "diamond-tall", "p": "pentagon",
    "H": "hexagon2", "8": "octagon", "+": "cross-thin-open", "*": "star",
}  # fmt: skip
_DASHES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}
#: Line styles of the variants of one attack.
_VARIANTS = ("solid", "dash", "dashdot", "longdash", "longdashdot")


def figures(collection: Collection) -> dict[str, Any]:
    """Series of all figures, with as many epochs as the budget allows.

    Returns:
        `every`: one epoch of so many is kept, and the last one; `panels`: training curves; `studies`: curves of
        accuracy under attack, and of what was measured beside attacks; `layerwise` and `quantities`: options of the
        page's menus, with the labels of their axes; `trained`: whether any run has a record after training.
    """
    shown = panels([run.result for run in collection.runs])
    longest = max(len(run.result["history"]) for run in collection.runs)
    every = 1
    found = _panels(shown, every)
    while len(json.dumps(found)) > BUDGET and every < longest:
        every *= 2
        found = _panels(shown, every)
    runs = [run for panel in found for curve in panel["curves"] for run in curve["runs"]]
    return {
        "every": every,
        "panels": found,
        "studies": _studies(collection.studies),
        "layerwise": {key: name for key, name in LAYERWISE.items() if any(key in run["layers"] for run in runs)},
        "quantities": {
            key: _head(key) for key in sorted({key for run in runs for key in run["validation"]}, key=_importance)
        },
        "trained": any(len(run["epochs"]) > 1 for run in runs),
    }


def _panels(shown: Mapping[str, Sequence[Curve]], every: int) -> list[dict[str, Any]]:
    found = []
    for title, curves in shown.items():
        records = [record for curve in curves for run in curve.runs for record in run["history"]]
        layers = list(dict.fromkeys(name for record in records for key in LAYERWISE for name in record.get(key) or {}))
        members = [
            {
                "name": curve.name,
                **{key: value for key, value in facets_of(curve.runs[0]).items() if key != "seed"},
                "color": curve.color,
                "symbol": _SYMBOLS[curve.marker],
                "dash": _DASHES[curve.line],
                "runs": [_run(run, layers, every) for run in curve.runs],
            }
            for curve in curves
        ]
        found.append({"title": title, "layers": layers, "curves": members})
    return found


def _run(result: Result, layers: Sequence[str], every: int) -> dict[str, Any]:
    history = result["history"]
    kept = [each for each in range(len(history)) if each % every == 0 or each == len(history) - 1]
    seconds = list(itertools.accumulate(record.get("seconds") or 0.0 for record in history))
    return {
        "seed": str(result["config"]["experiment"]["seed"]),
        "epochs": kept,
        "seconds": [_short(seconds[each]) for each in kept],
        **{split: _split([history[each].get(split) for each in kept]) for split in ("train", "validation")},
        "layers": {
            key: [[_short((history[each].get(key) or {}).get(layer)) for each in kept] for layer in layers]
            for key in LAYERWISE
            if any(record.get(key) for record in history)
        },
    }


def _split(records: Sequence[Mapping[str, float] | None]) -> dict[str, list[float | None]]:
    keys = dict.fromkeys(key for record in records for key in record or {})
    return {key: [_short((record or {}).get(key)) for record in records] for key in keys}


def _importance(quantity: str) -> tuple[int, str]:
    """Sort key that puts the figures that tables show first, then the others by name."""
    first = list(SHOWN)
    return (first.index(quantity) if quantity in first else len(first), quantity)


def _head(quantity: str) -> str:
    if quantity in SHOWN:
        return SHOWN[quantity].head
    return quantity.replace("_", " ") + (" (%)" if quantity.endswith("error") else "")


def _short(value: float | None) -> float | None:
    """Value rounded to four digits, which is finer than a pixel of the screen."""
    return None if value is None else float(f"{value:.4g}")


def _studies(studies: Sequence[Result]) -> list[dict[str, Any]]:
    sorted_in: dict[tuple[str, str], list[Result]] = {}
    for study in studies:
        each = facets_of(study)
        sorted_in.setdefault((each["network"], each["dataset"]), []).append(study)
    return [
        {
            "title": f"{network} on {dataset}",
            "attacks": [
                *(_attack(members, name) for name in _ATTACKS if of_attack(members, name)),
                *([_smallest(searched)] if (searched := [each for each in members if each.get("smallest")]) else []),
            ],
            "beside": beside_attacks(members),
        }
        for (network, dataset), members in sorted_in.items()
    ]


_ATTACKS = {**WHITE_BOX, **BLACK_BOX}


def _attack(studies: Sequence[Result], name: str) -> dict[str, Any]:
    """Panels of an attack: one for each gradient, or a single one for a black box."""
    gradients: list[Gradient | None] = [None] if name in BLACK_BOX else list(GRADIENTS)
    return {
        "name": _ATTACKS[name].replace("\n", " "),
        "x": "pixels changed" if name == "few_pixel" else "ε",
        "y": "accuracy (%)",
        "panels": [
            {
                "title": "" if gradient is None else GRADIENTS[gradient],
                "curves": [
                    curve for network in networks_of(studies) for curve in _curves(studies, network, name, gradient)
                ],
            }
            for gradient in gradients
        ],
    }


#: Largest number of points of a curve of smallest perturbations, which has one per image.
_POINTS = 100


def _smallest(studies: Sequence[Result]) -> dict[str, Any]:
    """Panels of the accuracy that follows from the smallest perturbation of each image by any attack."""
    panels: list[dict[str, Any]] = []
    for gradient, title in GRADIENTS.items():
        curves = []
        for network in networks_of(studies):
            for study in network.studies:
                epsilons, accuracies = distance_curve(study, gradient)
                n, every = len(study["smallest"][0]["distances"]), -(-len(epsilons) // _POINTS)
                bounds = [interval(round(each * n / 100), n) for each in accuracies]
                points = (epsilons, accuracies, [low for low, _ in bounds], [high for _, high in bounds])
                look = {"rule": facets_of(study)["rule"], "color": network.look["color"], "dash": "solid"}
                symbol = _SYMBOLS[network.look["marker"]]
                kept = tuple(each[::every] for each in points)
                curves.append({"name": network.name, **look, "symbol": symbol, **_points(kept)})
        panels.append({"title": title, "curves": curves})
    return {"name": "smallest perturbations", "x": "ε", "y": "accuracy (%)", "panels": panels}


def _curves(studies: Sequence[Result], network: Network, name: str, gradient: str | None) -> list[dict[str, Any]]:
    """Curves of a network: one for each variant of the attack, and random signs for comparison."""
    look, found = _look(network), []
    for dash, (words, told) in zip(itertools.cycle(_VARIANTS), variants_of(studies, name).items(), strict=False):

        def chosen(each: Measurement, words: tuple[str, ...] = words) -> bool:
            follows = each["gradient"] == gradient or network.one_gradient
            return each["attack"] == name and words_of(each) == words and follows

        if (curve := curve_of(network, chosen)) is not None:
            found.append({"name": f"{network.name} {told}".strip(), **look, "dash": dash, **_points(curve)})
    noise = curve_of(network, lambda each: each["attack"] == "random_signs")
    if noise is not None and name != "few_pixel":
        found.append({"name": f"{network.name}, random signs", **look, "dash": "dot", **_points(noise)})
    return found


def _look(network: Network) -> dict[str, str]:
    return {
        "rule": facets_of(network.studies[0])["rule"],
        "color": network.look["color"],
        "symbol": _SYMBOLS[network.look["marker"]],
    }


def beside_attacks(studies: Sequence[Result]) -> list[dict[str, Any]]:
    """Panels of what was measured beside attacks: corruptions, a reliability diagram, the error of calibration."""
    networks, kinds = networks_of(studies), kinds_of(studies)
    severity = "severity, where 0 is without corruption"
    found: list[dict[str, Any]] = []
    for kind, figure in [*((kind, "accuracy") for kind in (ALL_KINDS, *kinds)), (ALL_KINDS, "ece")]:
        curves = [
            {"name": network.name, **_look(network), "dash": "solid", **_points(curve)}
            for network in networks
            if (curve := severity_curve(network, kind, figure)) is not None
        ]
        name, y = f"corruptions, {kind.replace('_', ' ')}", "accuracy (%)"
        if figure == "ece":
            name, y = "calibration error under corruptions", "expected calibration error (%)"
        found.append({"name": name, "x": severity, "y": y, "panels": [{"title": "", "curves": curves}]})
    curves = [
        {"name": network.name, **_look(network), "dash": "solid", "share": share, **_points((x, y, y, y))}
        for network in networks
        for x, y, share in filter(None, [reliability_curve(network)])
    ]
    panels = [{"title": "", "curves": curves}]
    found.append(
        {"name": "calibration", "x": "confidence (%)", "y": "accuracy (%)", "diagonal": True, "panels": panels}
    )
    return [each for each in found if each["panels"][0]["curves"]]


def _points(curve: tuple[list[float], ...]) -> dict[str, list[float | None]]:
    return {
        key: [_short(value) for value in values]
        for key, values in zip(("x", "mean", "low", "high"), curve, strict=True)
    }
