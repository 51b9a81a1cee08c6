"""Text content of the page: tables, verdicts, runs."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from biotorch._tables import Table
from biotorch.experiment.results import Result
from biotorch.report.table import robustness_table, table
from biotorch.results import frames
from biotorch.results.collecting import Collection, Run
from biotorch.results.groups import at, by_configuration, label, method, without_copies
from biotorch.training.figures import told

#: Facets by which a reader can choose runs, with their keys in the configuration.
FACETS = {
    "rule": "model.mode.type",
    "network": "model.architecture",
    "dataset": "data.dataset",
    "optimizer": "training.optimizer.type",
    "seed": "experiment.seed",
}
_HEADS = {
    "rule": "rules",
    "network": "networks",
    "dataset": "data sets",
    "optimizer": "optimizers",
    "seed": "seeds (figures and runs)",
}


#: Start of a numeric cell; a dash stands for a missing number.
_NUMBER = re.compile(r"[-+]?\d|\[[-+]|-$")


def facets_of(result: Mapping[str, Any]) -> dict[str, str]:
    """Values of a run's facets, as text."""
    found = {name: at(dict(result), path) for name, path in FACETS.items()}
    values = {name: "-" if value is None else str(value) for name, value in found.items()}
    return {**values, "rule": method(dict(result))}


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Table with the facets of every row, so that the page can filter rows."""

    table: Table
    facets: list[dict[str, str]]

    @property
    def kinds(self) -> list[str]:
        """Kind of every column, `number` or `text`."""
        columns = zip(*self.table.rows, strict=True)
        return ["number" if all(_NUMBER.match(cell) for cell in column) else "text" for column in columns]


def content(collection: Collection) -> dict[str, Any]:
    """Values for the page's template, except the figures."""
    results = without_copies(collection.results)
    groups = by_configuration(results)
    without_seed = [{**facets_of(group[0]), "seed": ""} for group in groups]
    differences, reason = _differences(collection)
    labels = {id(result): label(group, groups) for group in groups for result in group}
    return {
        "facets": _facets(results),
        "heads": _HEADS,
        "headline": _Rows(table(results), without_seed),
        "differences": differences,
        "no_differences": reason,
        "studies": _studies(collection.studies),
        "runs": [_run(run, labels[id(run.result)]) for run in collection.runs if id(run.result) in labels],
        "copies": len(collection.runs) - len(results),
        "unfinished": [str(path) for path in collection.unfinished],
        "problems": collection.problems,
    }


def _facets(results: Sequence[Result]) -> dict[str, list[str]]:
    """Values that occur, by facet."""
    found = [facets_of(result) for result in results]
    values = {name: list(dict.fromkeys(each[name] for each in found)) for name in FACETS}
    return {name: sorted(each, key=_as_number) if name == "seed" else each for name, each in values.items()}


def _as_number(seed: str) -> tuple[int, str]:
    return (int(seed), "") if seed.lstrip("-").isdigit() else (0, seed)


#: Columns in which rules are compared, with words for the difference and for the note.
_COMPARED = {"test_error": ("points", "error"), "test_r2": ("R²", "R²")}


def _differences(collection: Collection) -> tuple[_Rows | None, str]:
    """Table of each rule's differences to backpropagation, seed by seed; or None and the reason."""
    whole = frames.of_collection(collection)
    compared = [value for value in _COMPARED if whole[value].notna().any()]
    rows, facets = [], []
    for value in compared:
        frame = whole[whole[value].notna()]
        if "backpropagation" not in set(frame["rule"]) or frame["rule"].nunique() < 2:
            continue
        try:
            found = frames.paired(frame, value=value)
        except ValueError as error:
            return None, str(error)
        unit, decimals = (f" {_COMPARED[value][0]}" if len(compared) > 1 else ""), 3 if value == "test_r2" else 2
        for row in found.to_dict("records"):
            each = {**found.attrs["common"], **row}
            names = {"network": "architecture", "dataset": "dataset", "optimizer": "optimizer", "rule": "rule"}
            facets.append({"seed": "", **{name: str(each[column]) for name, column in names.items()}})
            low, high = (f"{each[end]:+.{decimals}f}" for end in ("low", "high"))
            interval = f"[{low}, {high}]" if each["n"] > 1 else "-"
            setting = [str(each[name]) for name in ("dataset", "architecture", "optimizer", "epochs")]
            difference = f"{each['difference']:+.{decimals}f}{unit}"
            rows.append([*setting, each["rule"], difference, interval, str(each["n"])])
    if not rows:
        return None, ""
    unit = f" ({_COMPARED[compared[0]][0]})" if len(compared) == 1 else ""
    header = ["data set", "network", "optimizer", "epochs", "rule", f"difference{unit}", "95 % interval", "n"]
    figure = " or ".join(_COMPARED[value][1] for value in compared)
    notes = [
        f"Test {figure} minus backpropagation's test {figure} at the same seed. Interval: Student's t over n pairs."
    ]
    return _Rows(Table("Difference to backpropagation", header, rows, notes), facets), ""


def _studies(studies: Sequence[Result]) -> list[dict[str, Any]]:
    """Robustness studies by network and data set, each group with its table and the studies' findings."""
    sorted_in: dict[tuple[str, str], list[Result]] = {}
    for study in studies:
        sorted_in.setdefault((str(at(study, FACETS["network"])), str(at(study, FACETS["dataset"]))), []).append(study)
    found = []
    for (network, dataset), members in sorted_in.items():
        rows = robustness_table(members)
        rows = dataclasses.replace(rows, notes=[note for note in rows.notes if not note.startswith("Checks that")])
        found.append(
            {
                "title": f"{network} on {dataset}",
                "rows": _Rows(rows, [facets_of(each) for each in members]),
                "found": [
                    {
                        "name": row[0],
                        "facets": facets_of(each),
                        "verdict": each["study"]["verdict"],
                        "sentence": each["study"]["sentence"],
                        "fired": [check for check in each["study"]["checks"] if check["fired"]],
                    }
                    for row, each in zip(rows.rows, members, strict=True)
                ],
            }
        )
    return found


def _run(run: Run, name: str) -> dict[str, Any]:
    result = run.result
    config = result["config"]
    split = next((each for each in ("test", "validation") if result[each]), None)
    return {
        "name": name,
        "headline": f", {split} {told(result[split])}" if split else "",
        "facets": facets_of(result),
        "path": str(run.path),
        "figures": {
            f"{split} {key}": "-" if value is None else f"{value:.4g}" for key, value in (result[split] or {}).items()
        }
        if split
        else {},
        "best_epoch": result.get("best_epoch"),
        "epochs": max(0, len(result["history"]) - 1),
        "seconds": f"{result['seconds']:.1f}",
        "skipped": len(result.get("skipped_images") or []),
        "hash": result["state_hash"],
        "environment": result["environment"],
        "config": yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
        "command": _command(run),
    }


def _command(run: Run) -> str:
    """Command that repeats the run in a folder of its own."""
    folder = str(run.path.resolve())
    words = ["biotorch", "run", f"{folder}/config.yaml", "experiment.output_dir=repeated"]
    return shlex.join(words)
