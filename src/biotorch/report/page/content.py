"""Text content of the page: conclusions, tables, verdicts, runs."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from biotorch.experiment.results import Result
from biotorch.report.page.comparison import conclusion, settings_of, title
from biotorch.report.page.overview import FACETS, Rows, differences, dot_plot, facets_of, headline
from biotorch.report.smallest import smallest_table
from biotorch.report.table import robustness_table
from biotorch.report.words import explained
from biotorch.results.collecting import Collection, Run
from biotorch.results.groups import at, by_configuration, in_order, label, method, without_copies
from biotorch.training.figures import told

_HEADS = {
    "rule": "rules",
    "network": "networks",
    "dataset": "data sets",
    "optimizer": "optimizers",
    "seed": "seeds (figures and runs)",
}


def content(collection: Collection, place: Path = Path()) -> dict[str, Any]:
    """Values for the page's template, except the figures; `place` is the folder of the page."""
    results = without_copies(collection.results)
    groups = by_configuration(results)
    labels = {id(result): label(group, groups) for group in groups for result in group}
    settings = settings_of(collection)
    by_rule: dict[str, list[dict[str, Any]]] = {}
    for run in collection.runs:
        if id(run.result) in labels:
            by_rule.setdefault(method(run.result), []).append(_run(run, labels[id(run.result)], place))
    return {
        "facets": _facets(results),
        "heads": _HEADS,
        "rules": {name: explained(name) for name in by_rule},
        "settings": [
            {"title": title(each), "sentences": conclusion(each), "dots": dot_plot(each)} for each in settings
        ],
        "headline": headline(results, groups),
        "differences": differences(settings),
        "studies": _studies(collection.studies),
        "runs": by_rule,
        "count": len(results),
        "copies": len(collection.runs) - len(results),
        "unfinished": [_relative(path, place) for path in collection.unfinished],
        "problems": collection.problems,
    }


def _facets(results: Sequence[Result]) -> dict[str, list[str]]:
    """Values that occur, by facet."""
    found = [facets_of(result) for result in results]
    values = {name: list(dict.fromkeys(each[name] for each in found)) for name in FACETS}
    return {name: sorted(each, key=_as_number) if name == "seed" else each for name, each in values.items()}


def _as_number(seed: str) -> tuple[int, str]:
    return (int(seed), "") if seed.lstrip("-").isdigit() else (0, seed)


def _studies(studies: Sequence[Result]) -> list[dict[str, Any]]:
    """Robustness studies by network and data set, each group with its table and the studies' findings."""
    sorted_in: dict[tuple[str, str], list[Result]] = {}
    for study in studies:
        sorted_in.setdefault((str(at(study, FACETS["network"])), str(at(study, FACETS["dataset"]))), []).append(study)
    found = []
    for (network, dataset), each_study in sorted_in.items():
        members = in_order(each_study, dict)  # the order of the table
        rows = robustness_table(members)
        rows = dataclasses.replace(rows, notes=[note for note in rows.notes if not note.startswith("Checks that")])
        medians, searched = smallest_table(members), [each for each in members if each.get("smallest")]
        found.append(
            {
                "title": f"{network} on {dataset}",
                "rows": Rows(rows, [facets_of(each) for each in members], 0),
                "smallest": medians and Rows(medians, [facets_of(each) for each in searched], 0),
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


# Runs --------------------------------------------------------------------------------------------


def _run(run: Run, name: str, place: Path) -> dict[str, Any]:
    result = run.result
    split = next((each for each in ("test", "validation") if result[each]), None)
    config, command = repetition(result)
    return {
        "name": name,
        "headline": f", {split} {told(result[split])}" if split else "",
        "facets": facets_of(result),
        "path": _relative(run.path, place),
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
        "config": config,
        "command": command,
    }


#: Keys of the configuration that may hold a path of the machine that has trained.
_PATHS = (("data", "dataset_path"), ("model", "checkpoint"))


def repetition(result: Result) -> tuple[str, str]:
    """Configuration of a run as YAML, and the commands that repeat the run with it, without paths of this machine."""
    config: dict[str, Any] = {
        key: dict(part) if isinstance(part, dict) else part for key, part in result["config"].items()
    }
    config["experiment"].pop("output_dir", None)
    words = ["biotorch", "run", "config.yaml", "experiment.output_dir=repeated"]
    for section, key in _PATHS:
        value = (config.get(section) or {}).get(key)
        if value and Path(str(value)).is_absolute():
            del config[section][key]
            words.append(f"{section}.{key}=YOUR/{Path(str(value)).name}")
    version, commit = result["environment"]["biotorch"], result["environment"].get("commit")
    lines = [f"# biotorch {version}, installed from a package"]
    if commit is not None:
        changed = ["# the code of this run had changes that were not committed, so the numbers may differ"]
        lines = [f"git checkout {commit.removesuffix('-dirty')}", *(changed if commit.endswith("-dirty") else ())]
        lines.append("pip install .")
    lines.append(shlex.join(words))
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True), "\n".join(lines)


def _relative(path: Path, place: Path) -> str:
    """Path as seen from the folder of the page; of a place elsewhere the last two parts."""
    found = Path(os.path.relpath(path.resolve(), place.resolve()))
    return str(found) if found.parts[:1] != ("..",) else str(Path(*path.resolve().parts[-2:]))
