"""Runs that differ by their seed alone belong together."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence

from biotorch.experiment.results import Result


def by_configuration(results: Sequence[Result]) -> list[list[Result]]:
    """The results in groups of equal configuration, seed apart, in order of first appearance."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        config = json.loads(json.dumps(result["config"]))
        config["experiment"]["seed"] = None
        groups.setdefault(json.dumps(config, sort_keys=True), []).append(result)
    return list(groups.values())


def label(group: Sequence[Result], groups: Sequence[Sequence[Result]]) -> str:
    """The rule, and the network, data set and optimizer where the groups differ in them."""
    parts = [str(group[0]["config"]["model"]["mode"]["type"])]
    for path in ("model.architecture", "data.dataset", "training.optimizer.type", "training.optimizer.lr"):
        values = {str(_at(other[0], path)) for other in groups}
        if len(values) > 1:
            parts.append(str(_at(group[0], path)))
    return " ".join(parts)


def mean_angle(result: Result, key: str, epoch: int) -> float | None:
    """The mean over layers of `angles` or `gradient_angles` at an entry of the history; None if not tracked."""
    values = [value for value in result["history"][epoch].get(key, {}).values() if value is not None]
    return statistics.fmean(values) if values else None


def _at(result: Result, path: str) -> object:
    value: object = result["config"]
    for part in path.split("."):
        assert isinstance(value, dict)
        value = value[part]
    return value
