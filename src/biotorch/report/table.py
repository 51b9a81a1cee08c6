"""Tables: figures by rule with angles and the paper's errors, and accuracies under attack."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from biotorch._tables import Table
from biotorch.experiment.results import Result
from biotorch.results.groups import (
    EPOCHS,
    at,
    by_configuration,
    dataset,
    differs,
    in_order,
    label,
    mean_angle,
    method,
    published_error,
    without_copies,
)
from biotorch.training.figures import SHOWN

#: Settings that get a column if they differ between rows.
_COLUMNS = {
    "data set": "data.dataset",
    "target": "data.target",
    "network": "model.architecture",
    "optimizer": "training.optimizer.type",
    "epochs": "training.hyperparameters.epochs",
}

#: Columns of angles, which show their change by training as means over all layers.
ANGLE_HEADS = ("alignment angle (°)", "gradient angle (°)")


def table(results: Sequence[Result]) -> Table:
    """Headline table: one row per configuration, with means over its seeds of the figures that any run has.

    Angles are means over layers, before training → after the last epoch: the alignment angle between W and B, which
    direct rules do not have, and the gradient angle between the rule's gradient and the true one. A copy of a run is
    not counted.

    Raises:
        ValueError: there are no results.

    Examples:
        >>> results = biotorch.experiment.run(biotorch.experiment.read("study.yaml"))
        >>> print(biotorch.report.table(list(results.values())).markdown().splitlines()[2])
        | rule | test error (%) | alignment angle (°) | gradient angle (°) | n |
    """
    if not results:
        raise ValueError("results: at least one is needed for a table")
    results = without_copies(results)
    groups = by_configuration(results)
    columns = {head: path for head, path in _COLUMNS.items() if differs(path, groups)}
    split = "test" if all(result["test"] for result in results) else "validation"
    figures = {key: each for key, each in SHOWN.items() if any(key in (result[split] or {}) for result in results)}
    paper = split == "test" and any(published_error(group[0]["config"]) is not None for group in groups)
    rows = [
        [
            *(str(at(group[0], path) or "-") for path in columns.values()),
            label(group, [other for other in groups if _same(other, group, columns.values())]),
            *(each.cell([(result[split] or {}).get(key) for result in group]) for key, each in figures.items()),
            *([_published(group[0])] if paper else []),
            _change(group, "angles"),
            _change(group, "gradient_angles"),
            str(len(group)),
        ]
        for group in groups
    ]
    return Table(
        title=_title(groups[0][0], columns),
        header=[
            *columns,
            "rule",
            *(f"{split} {each.head}" for each in figures.values()),
            *(["paper"] if paper else []),
            *ANGLE_HEADS,
            "n",
        ],
        rows=rows,
        notes=_notes(results, paper),
        source=_source(results),
    )


def _title(result: Result, columns: dict[str, str]) -> str:
    """Title made of the settings that all rows share."""
    common = [str(at(result, _COLUMNS[name])) for name in ("network", "data set") if name not in columns]
    training = result["config"]["training"]
    epochs = (
        f"{training['hyperparameters']['epochs']} epoch{'s' * (training['hyperparameters']['epochs'] != 1)}"
        if training
        else "evaluation"
    )
    return ", ".join([*([" on ".join(common)] if common else []), *([epochs] if "epochs" not in columns else [])])


def _notes(results: Sequence[Result], paper: bool) -> list[str]:
    notes = ["Mean ± standard deviation over n seeds. Angles: mean over all layers, before → after training."]
    notes += [
        f"{method(group[0])}: seed {seed} occurs {times} times with different results, perhaps from other versions or "
        "machines; n and the mean count each of them."
        for group in by_configuration(results)
        for seed, times in Counter(result["config"]["experiment"]["seed"] for result in group).items()
        if times > 1
    ]
    notes += [
        f"{method(group[0])}: its runs have read different data."
        for group in by_configuration(results)
        if len({(result.get("data") or {}).get("digest") for result in group} - {None}) > 1
    ]
    notes += _without_checksum(results)
    if any(result["config"]["data"]["validation"] == "test" for result in results):
        notes.append("The best epoch was chosen on the test set.")
    if paper:
        recipes = {
            (dataset(result["config"]), EPOCHS[dataset(result["config"])])
            for result in results
            if published_error(result["config"]) is not None
        }
        told = ", ".join(f"{epochs} ({name})" for name, epochs in sorted(recipes))
        notes.append(f"Paper: errors from its tables 1 to 3, for one seed; its training takes {told} epochs.")
    return notes


def _source(results: Sequence[Result]) -> str:
    environment = results[0]["environment"]
    versions = {(each["environment"]["biotorch"], each["environment"]["commit"]) for each in results}
    of = "" if len(versions) == 1 else f" and {len(versions) - 1} other version{'s' if len(versions) > 2 else ''}"
    return (
        f"biotorch {environment['biotorch']} ({environment['commit'] or 'no commit'}){of}, "
        f"torch {environment['torch']}, {environment['device']}, CPU threads: {environment['threads']}."
    )


def _without_checksum(results: Sequence[Mapping[str, Any]]) -> list[str]:
    count = sum("digest" not in each for each in results)
    return [f"{count} of {len(results)} files are of an earlier version, without checksum."] if count else []


def _same(one: Sequence[Result], other: Sequence[Result], paths: Iterable[str]) -> bool:
    return all(at(one[0], path) == at(other[0], path) for path in paths)


def _published(result: Result) -> str:
    error = published_error(result["config"])
    return "-" if error is None else f"{error:.2f}"


def _change(group: Sequence[Result], key: str) -> str:
    first = [angle for result in group if (angle := mean_angle(result, key, 0)) is not None]
    last = [angle for result in group if (angle := mean_angle(result, key, -1)) is not None]
    if not first or not last:
        return "-"
    return f"{statistics.fmean(first):.0f} → {statistics.fmean(last):.0f}"


#: Column heads by name and gradient of the attack.
_ROBUSTNESS_COLUMNS: dict[tuple[str, str | None], str] = {
    ("pgd", "feedback"): "PGD, feedback gradient",
    ("pgd", "true"): "PGD, true gradient",
    ("random_signs", None): "random signs",
    ("square", None): "Square",
    ("transfer", None): "transfer",
    ("auto_attack", "true"): "AutoAttack",
}


def robustness_table(studies: Sequence[Mapping[str, Any]], epsilon: float | None = None) -> Table:
    """Table of studies, one per row: accuracy (%) under each attack at one epsilon, the verdict, and what was measured
    beside the attacks.

    The notes name the checks that fired. Of several variants of an attack, the strongest counts. A network with only
    one gradient, such as under backpropagation, has the same figure in the columns of both gradients.

    Args:
        studies: contents of study.json files: `config`, `environment`, `study`.
        epsilon: radius of the accuracies. Default: the epsilon of each study's verdict.
    """
    studies = in_order(studies, dict)
    groups = by_configuration([dict(each) for each in studies])
    names = {id(group[0]["study"]): label(group, groups) for group in groups}
    columns = [key for key in _ROBUSTNESS_COLUMNS if any(_found(each, key, epsilon) for each in studies)]
    beside = [head for head in _BESIDE if any(_beside(each, head) is not None for each in studies)]
    rows = [
        [*_row(each, _name(each, names, groups), columns, epsilon), *(_cell(_beside(each, head)) for head in beside)]
        for each in studies
    ]
    architectures = {each["config"]["model"]["architecture"] for each in studies}
    environment = studies[0]["environment"]
    radius = "the epsilon of the verdict" if epsilon is None else f"epsilon {epsilon:.3g}"
    counts = sorted({each["n"] for one in studies for each in one["study"]["measurements"]})
    n = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,} (see each study.md)"
    return Table(
        title=f"{', '.join(sorted(architectures))} on {studies[0]['config']['data']['dataset']}: "
        f"accuracy (%) at {radius}",
        header=[
            *("network", "clean", *(_ROBUSTNESS_COLUMNS[key] for key in columns), "strongest", "cosine", "verdict"),
            *beside,
        ],
        rows=rows,
        notes=[
            f"{n} test images. Strongest: each image under the worst of all attacks within epsilon. Cosine: between "
            "true and feedback gradient.",
            *([" ".join(_BESIDE[head][2] for head in beside)] if beside else []),
            *_without_checksum(studies),
            *(f"Checks that fired, {row[0]}: {_fired(each)}." for row, each in zip(rows, studies, strict=True)),
        ],
        source=f"biotorch {environment['biotorch']} ({environment['commit'] or 'no commit'}), "
        f"torch {environment['torch']}, {environment['device']}.",
    )


#: Columns beside the attacks: the part of study.json and its key, and the note that explains the column.
_BESIDE = {
    "corrupted": (
        "corruptions",
        "mean_accuracy",
        "Corrupted: mean over all kinds and severities of common corruptions.",
    ),
    "mCE": ("corruptions", "mce", "mCE: mean corruption error, in percent of the twin's errors."),
    "ECE": ("calibration", "ece", "ECE: expected calibration error (%) on the images themselves."),
}


def _beside(study: Mapping[str, Any], head: str) -> float | None:
    part, key, _ = _BESIDE[head]
    figure: float | None = (study.get(part) or {}).get(key)
    return figure


def _cell(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:.1f}"


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
    """Accuracies (%) under an attack at the epsilon, one for each of its variants."""
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
