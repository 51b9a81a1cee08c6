"""Runs that differ by their seed alone belong together."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence

from biotorch.experiment.results import Result

#: What the label of a group names where it is not the same in all of them.
_TOLD_BY = (
    "model.architecture",
    "data.dataset",
    "training.optimizer.type",
    "training.optimizer.lr",
    "model.checkpoint",
)


def by_configuration(results: Sequence[Result]) -> list[list[Result]]:
    """The results in groups of equal configuration, seed apart, in order of first appearance."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        config = json.loads(json.dumps(result["config"]))
        config["experiment"]["seed"] = None
        groups.setdefault(json.dumps(config, sort_keys=True), []).append(result)
    return list(groups.values())


def label(group: Sequence[Result], groups: Sequence[Sequence[Result]]) -> str:
    """The rule, and what else tells its groups apart: network, data set, optimizer and its rate."""
    rule = _at(group[0], "model.mode.type")
    alike = [other[0] for other in groups if _at(other[0], "model.mode.type") == rule]
    parts = [str(rule)]
    for path in (
        "model.architecture",
        "data.dataset",
        "training.optimizer.type",
        "training.optimizer.lr",
        "model.checkpoint",
    ):
        if len({str(_at(other, path)) for other in alike}) > 1:
            parts.append(str(_at(group[0], path)))
    return " ".join(parts)


def mean_angle(result: Result, key: str, epoch: int) -> float | None:
    """The mean over layers of `angles` or `gradient_angles` at an entry of the history; None if not tracked."""
    if not result["history"]:
        return None
    values = [value for value in result["history"][epoch].get(key, {}).values() if value is not None]
    return statistics.fmean(values) if values else None


def _at(result: Result, path: str) -> object:
    value: object = result["config"]
    for part in path.split("."):
        value = value[part] if isinstance(value, dict) else None  # a section that was left out
    return value
