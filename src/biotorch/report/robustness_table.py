"""The table of robustness studies: what the paper measured beside what an attacker gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from biotorch.report.groups import by_configuration, label
from biotorch.tables import Table

#: Name and gradient of the attacks that have a column, and its head.
_COLUMNS: dict[tuple[str, str | None], str] = {
    ("pgd", "feedback"): "PGD, feedback gradient",
    ("pgd", "true"): "PGD, true gradient",
    ("random_signs", None): "random signs",
    ("square", None): "Square",
    ("transfer", None): "transfer",
    ("auto_attack", "true"): "AutoAttack",
}


def robustness_table(studies: Sequence[Mapping[str, Any]], epsilon: float | None = None) -> Table:
    """A row per study: accuracy (%) under each attack at one epsilon, and the verdict; below, the checks that fired.

    Args:
        studies: as study.json has them: `config`, `environment`, `study`.
        epsilon: default: that of each study's verdict.

    Of several variants of an attack, the strongest counts. A network with one gradient alone, such as one under
    backpropagation, has the same figure under both.
    """
    groups = by_configuration([dict(each) for each in studies])
    names = {id(group[0]["study"]): label(group, groups) for group in groups}
    columns = [key for key in _COLUMNS if any(_found(each, key, epsilon) for each in studies)]
    rows = [_row(each, _name(each, names, groups), columns, epsilon) for each in studies]
    architectures = {each["config"]["model"]["architecture"] for each in studies}
    environment = studies[0]["environment"]
    radius = "the epsilon of the verdict" if epsilon is None else f"epsilon {epsilon:.3g}"
    counts = sorted({each["n"] for one in studies for each in one["study"]["measurements"]})
    n = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}, as each study.md tells,"
    return Table(
        title=f"{', '.join(sorted(architectures))} on {studies[0]['config']['data']['dataset']}: "
        f"accuracy (%) at {radius}",
        header=["network", "clean", *(_COLUMNS[key] for key in columns), "strongest", "cosine", "verdict"],
        rows=rows,
        notes=[
            f"{n} test images. Strongest: every image under the worst of all attacks within epsilon. Cosine: between "
            "true and feedback gradient.",
            *(f"Checks that fired, {row[0]}: {_fired(each)}." for row, each in zip(rows, studies, strict=True)),
            f"biotorch {environment['biotorch']} ({environment['commit'] or 'no commit'}), "
            f"torch {environment['torch']}, {environment['device']}.",
        ],
    )


def _name(study: Mapping[str, Any], names: Mapping[int, str], groups: Sequence[Sequence[Any]]) -> str:
    config = study["config"]
    group = next(each for each in groups if any(one["study"] is study["study"] for one in each))
    name = names[id(group[0]["study"])]
    return name if len(group) == 1 else f"{name}, seed {config['experiment']['seed']}"


def _row(
    one: Mapping[str, Any], name: str, columns: Sequence[tuple[str, str | None]], epsilon: float | None
) -> list[str]:
    study = one["study"]
    at = study["judged_at"] if epsilon is None else epsilon
    worst = min(study["worst_case"], key=lambda each: abs(each["epsilon"] - at))
    cells = [f"{min(found):.1f}" if (found := _found(one, key, epsilon)) else "-" for key in columns]
    low, high = worst["interval"]
    return [
        name,
        f"{study['clean_accuracy']:.1f}",
        *cells,
        f"{worst['robust_accuracy']:.1f} [{low:.1f}, {high:.1f}]",
        "-" if study["cosine"] is None else f"{round(study['cosine'], 2) + 0.0:.2f}",
        study["verdict"],
    ]


def _fired(one: Mapping[str, Any]) -> str:
    return ", ".join(check["name"] for check in one["study"]["checks"] if check["fired"]) or "none"


def _found(one: Mapping[str, Any], key: tuple[str, str | None], epsilon: float | None) -> list[float]:
    """The figures of an attack at the epsilon, one for each of its variants."""
    study, (name, gradient) = one["study"], key
    at = study["judged_at"] if epsilon is None else epsilon
    alone = not any(each["gradient"] == "feedback" for each in study["measurements"])
    wanted = "true" if gradient == "feedback" and alone else gradient
    return [
        each["robust_accuracy"]
        for each in study["measurements"]
        if each["attack"] == name
        and each["gradient"] == wanted
        and each["purpose"] == "figure"
        and abs(each["epsilon"] - at) < 1e-9
    ]
