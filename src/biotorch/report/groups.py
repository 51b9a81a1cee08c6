"""Runs that differ by their seed alone belong together."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence

from biotorch.experiment.claiming import what_counts
from biotorch.experiment.results import Result

#: What the label of a group names where it is not the same in all of them, beside arguments of the network.
_TOLD_BY = (
    "model.architecture",
    "data.dataset",
    "training.optimizer.type",
    "training.optimizer.lr",
    "model.checkpoint",
)


#: Differ between runs that belong together.
_OF_A_SEED = (("experiment", "seed"), ("infrastructure", "threads"))


def by_configuration(results: Sequence[Result]) -> list[list[Result]]:
    """The results in groups of equal configuration, in order of first appearance.

    Configurations are equal that compute the same but for the seed and the number of threads, wherever they write.
    """
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(json.dumps(_settings(result), sort_keys=True), []).append(result)
    return list(groups.values())


def _settings(result: Result) -> dict[str, object]:
    """What tells the group of a result, by dotted key path."""
    values = what_counts(result["config"])
    return {".".join(key): value for key, value in values.items() if key not in _OF_A_SEED}


def without_copies(results: Sequence[Result]) -> list[Result]:
    """Each run once, where a folder was copied: runs of equal configuration, seed and weights at the end."""
    found: dict[str, Result] = {}
    for result in results:
        key = [_settings(result), result["config"]["experiment"]["seed"], result["state_hash"]]
        found.setdefault(json.dumps(key, sort_keys=True), result)
    return list(found.values())


def method(result: Result) -> str:
    """The rule; `shallow` where it is backpropagation in a part of the network alone."""
    rule = str(at(result, "model.mode.type"))
    return "shallow" if rule == "backpropagation" and at(result, "model.train_only") else rule


def label(group: Sequence[Result], groups: Sequence[Sequence[Result]]) -> str:
    """The method with what it trains, and what else tells its groups apart.

    Such as `fa`, `shallow (head only)`, `fa depth=3 0.01`, `fa epochs=5`.
    """
    name = _name(group[0])
    alike = [other[0] for other in groups if _name(other[0]) == name]
    differing = [path for path in _TOLD_BY if _differs(path, alike)]
    parts = [name, *(str(at(group[0], path)) for path in differing)]
    for argument in sorted({key for each in alike for key in each["config"]["model"].get("arguments", {})}):
        path = f"model.arguments.{argument}"
        value = at(group[0], path)
        if value is not None and _differs(path, alike):
            parts.append(f"{argument}={value}")
    told = {*_TOLD_BY, "model.mode.type", "model.train_only"}
    same = [other for other in alike if all(at(other, path) == at(group[0], path) for path in told)]
    for path in sorted({path for each in same for path in _settings(each)}):
        value = at(group[0], path)
        known = path.startswith(("model.arguments", "model.mode.layers")) or path in told or value in (None, {})
        if not known and _differs(path, same):
            parts.append(f"{path.rsplit('.', 1)[-1]}={value}")
    return " ".join(parts)


def _name(result: Result) -> str:
    trained = result["config"]["model"].get("train_only")
    parts = [f"{', '.join(trained)} only"] if trained else []
    for pattern, rule in (at(result, "model.mode.layers") or {}).items():  # type: ignore[attr-defined]
        options = "".join(f" {name}={value}" for name, value in rule["options"].items() if value is not None)
        parts.append(f"{pattern}: {rule['type']}{options}")
    return f"{method(result)} ({', '.join(parts)})" if parts else method(result)


def differs(path: str, groups: Sequence[Sequence[Result]]) -> bool:
    """Whether a key of the configuration is not the same in all groups."""
    return _differs(path, [group[0] for group in groups])


def _differs(path: str, results: Sequence[Result]) -> bool:
    return len({str(at(result, path)) for result in results}) > 1


def mean_angle(result: Result, key: str, epoch: int) -> float | None:
    """The mean over layers of `angles` or `gradient_angles` at an entry of the history; None if not tracked."""
    if not result["history"]:
        return None
    values = [value for value in result["history"][epoch].get(key, {}).values() if value is not None]
    return statistics.fmean(values) if values else None


def at(result: Result, path: str) -> object:
    """The value of a dotted key path of its configuration; None where it was left out."""
    value: object = result["config"]
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None  # what was left out
    return value
