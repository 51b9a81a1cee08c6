"""The headline table: error by rule, mean ± std over seeds, beside the angles it learned with and the paper's error."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence

from biotorch.experiment.results import Result
from biotorch.report.groups import at, by_configuration, differs, label, mean_angle, method, without_copies
from biotorch.report.published import EPOCHS, dataset, published_error
from biotorch.tables import Table

#: Figures of a split, as the table's head has them.
_HEADS = {"error": "error (%)", "perplexity": "perplexity"}

#: What gets a column where it is not the same in all rows.
_COLUMNS = {
    "data set": "data.dataset",
    "network": "model.architecture",
    "optimizer": "training.optimizer.type",
    "epochs": "training.hyperparameters.epochs",
}


def table(results: Sequence[Result]) -> Table:
    """One row per configuration, over its seeds; with perplexities, where there are any.

    Angles are means over layers, before training -> after the last epoch. Weight alignment is the angle
    between W and B (direct rules have none); gradient alignment that between update and true gradient. A run that
    is there twice, as a copy, counts once.

    Raises:
        ValueError: there are no results.
    """
    if not results:
        raise ValueError("results: at least one is needed for a table")
    results = without_copies(results)
    groups = by_configuration(results)
    columns = {head: path for head, path in _COLUMNS.items() if differs(path, groups)}
    split = "test" if all(result["test"] for result in results) else "validation"
    figures = [name for name in ("error", "perplexity") if any(name in (result[split] or {}) for result in results)]
    paper = split == "test" and any(published_error(group[0]["config"]) is not None for group in groups)
    rows = [
        [
            *(str(at(group[0], path) or "-") for path in columns.values()),
            label(group, [other for other in groups if _same(other, group, columns.values())]),
            *(_spread([(result[split] or {}).get(name) for result in group]) for name in figures),
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
            *(f"{split} {_HEADS[name]}" for name in figures),
            *(["paper"] if paper else []),
            "weight alignment (°)",
            "gradient alignment (°)",
            "n",
        ],
        rows=rows,
        notes=_notes(results, paper),
    )


def _title(result: Result, columns: dict[str, str]) -> str:
    """What all rows have in common."""
    common = [str(at(result, _COLUMNS[name])) for name in ("network", "data set") if name not in columns]
    training = result["config"]["training"]
    epochs = f"{training['hyperparameters']['epochs']} epochs" if training else "evaluation"
    return ", ".join([*([" on ".join(common)] if common else []), *([epochs] if "epochs" not in columns else [])])


def _notes(results: Sequence[Result], paper: bool) -> list[str]:
    environment = results[0]["environment"]
    notes = ["Mean ± standard deviation over n seeds. Angles: mean over layers, before → after training."]
    notes += [
        f"{method(group[0])}: seed {seed} is there {times} times with different results (versions or machines?); n and "
        "the mean count each."
        for group in by_configuration(results)
        for seed, times in Counter(result["config"]["experiment"]["seed"] for result in group).items()
        if times > 1
    ]
    if any(result["config"]["data"]["validation"] == "test" for result in results):
        notes.append("The best epoch was chosen on the test set.")
    if paper:
        recipes = {
            (dataset(result["config"]), EPOCHS[dataset(result["config"])])
            for result in results
            if published_error(result["config"]) is not None
        }
        told = ", ".join(f"{epochs} on {name}" for name, epochs in sorted(recipes))
        notes.append(f"Paper: its tables 1 to 3, one seed; epochs of its recipes: {told}.")
    versions = {(each["environment"]["biotorch"], each["environment"]["commit"]) for each in results}
    of = "" if len(versions) == 1 else f" and {len(versions) - 1} other version{'s' if len(versions) > 2 else ''}"
    notes.append(
        f"biotorch {environment['biotorch']} ({environment['commit'] or 'no commit'}){of}, "
        f"torch {environment['torch']}, {environment['device']}, {environment['threads']} threads."
    )
    return notes


def _same(one: Sequence[Result], other: Sequence[Result], paths: Iterable[str]) -> bool:
    return all(at(one[0], path) == at(other[0], path) for path in paths)


def _published(result: Result) -> str:
    error = published_error(result["config"])
    return "-" if error is None else f"{error:.2f}"


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "-"
    if len(known) == 1:
        return f"{known[0]:.2f}"
    return f"{statistics.fmean(known):.2f} ± {statistics.stdev(known):.2f}"


def _change(group: Sequence[Result], key: str) -> str:
    first = [angle for result in group if (angle := mean_angle(result, key, 0)) is not None]
    last = [angle for result in group if (angle := mean_angle(result, key, -1)) is not None]
    if not first or not last:
        return "-"
    return f"{statistics.fmean(first):.0f} → {statistics.fmean(last):.0f}"
