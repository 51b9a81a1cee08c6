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
    """A row per study: accuracy (%) under each attack at one epsilon, the verdict and the checks that fired.

    Args:
        studies: as study.json has them: `config`, `environment`, `study`.
        epsilon: default: that of each study's verdict.

    A network with one gradient alone, such as one under backpropagation, has the same figure under both.
    """
    groups = by_configuration([dict(each) for each in studies])
    names = {id(group[0]["study"]): label(group, groups) for group in groups}
    columns = [key for key in _COLUMNS if any(_found(each, key, epsilon) for each in studies)]
    rows = [_row(each, _name(each, names, groups), columns, epsilon) for each in studies]
    architectures = {each["config"]["model"]["architecture"] for each in studies}
    environment = studies[0]["environment"]
    radius = "the epsilon of the verdict" if epsilon is None else f"epsilon {epsilon:.3g}"
    n = max(each["n"] for one in studies for each in one["study"]["measurements"])
    return Table(
        title=f"{', '.join(sorted(architectures))} on {studies[0]['config']['data']['dataset']}: "
        f"accuracy (%) at {radius}",
        header=["network", "clean", *(_COLUMNS[key] for key in columns), "strongest", "cosine", "verdict"],
        rows=rows,
        notes=[
            f"{n} test images. Strongest: every image under the worst of all attacks. Cosine: between true and "
            "feedback gradient.",
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
    cells = [found[-1] if (found := _found(one, key, epsilon)) else "-" for key in columns]
    low, high = worst["interval"]
    return [
        name,
        f"{study['clean_accuracy']:.1f}",
        *cells,
        f"{worst['robust_accuracy']:.1f} [{low:.1f}, {high:.1f}]",
        "-" if study["cosine"] is None else f"{study['cosine']:.2f}",
        study["verdict"],
    ]


def _found(one: Mapping[str, Any], key: tuple[str, str | None], epsilon: float | None) -> list[str]:
    """The figures of an attack at the epsilon; of several budgets, the largest comes last."""
    study, (name, gradient) = one["study"], key
    at = study["judged_at"] if epsilon is None else epsilon
    alone = not any(each["gradient"] == "feedback" for each in study["measurements"])
    wanted = "true" if gradient == "feedback" and alone else gradient
    found = [
        each
        for each in study["measurements"]
        if each["attack"] == name
        and each["gradient"] == wanted
        and each["purpose"] == "figure"
        and abs(each["epsilon"] - at) < 1e-9
    ]
    found.sort(key=lambda each: each["settings"].get("queries", 0))
    return [f"{each['robust_accuracy']:.1f}" for each in found]
