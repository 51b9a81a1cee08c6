"""Runs that differ by their seed alone belong together."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence

from biotorch.experiment.results import Result

#: What the label of a group names where it is not the same in all of them, beside arguments of the network.
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


def method(result: Result) -> str:
    """The rule; `shallow` where it is backpropagation in a part of the network alone."""
    rule = str(_at(result, "model.mode.type"))
    return "shallow" if rule == "backpropagation" and _at(result, "model.train_only") else rule


def label(group: Sequence[Result], groups: Sequence[Sequence[Result]]) -> str:
    """The method with what it trains, and what else tells its groups apart: network, data set, optimizer and its rate.

    Such as `fa`, `shallow (head only)`, `fa depth=3 0.01`.
    """
    name = _name(group[0])
    alike = [other[0] for other in groups if _name(other[0]) == name]
    differing = [path for path in _TOLD_BY if _differs(path, alike)]
    parts = [name, *(str(_at(group[0], path)) for path in differing)]
    for argument in sorted({key for each in alike for key in each["config"]["model"].get("arguments", {})}):
        path = f"model.arguments.{argument}"
        value = _at(group[0], path)
        if value is not None and _differs(path, alike):
            parts.append(f"{argument}={value}")
    return " ".join(parts)


def _name(result: Result) -> str:
    trained = result["config"]["model"].get("train_only")
    return f"{method(result)} ({', '.join(trained)} only)" if trained else method(result)


def _differs(path: str, results: Sequence[Result]) -> bool:
    return len({str(_at(result, path)) for result in results}) > 1


def mean_angle(result: Result, key: str, epoch: int) -> float | None:
    """The mean over layers of `angles` or `gradient_angles` at an entry of the history; None if not tracked."""
    if not result["history"]:
        return None
    values = [value for value in result["history"][epoch].get(key, {}).values() if value is not None]
    return statistics.fmean(values) if values else None


def _at(result: Result, path: str) -> object:
    value: object = result["config"]
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None  # what was left out
    return value
