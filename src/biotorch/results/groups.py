"""Groups of runs that differ only by their seed, their labels, and the paper's errors for them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from biotorch.experiment.identity import Key, differing, text_of, what_counts, what_counts_in_a_study
from biotorch.experiment.results import Result
from biotorch.rules.registry import position

_Member = TypeVar("_Member")

_RULES = ("backpropagation", "fa", "dfa", "usf", "brsf", "frsf")

#: Top-1 test error (%) by data set, network and optimizer, in the order of `_RULES`: tables 1, 2 and 3.
_ERRORS: dict[tuple[str, str, str], tuple[float, ...]] = {
    ("mnist", "le_net_mnist", "SGD"): (0.91, 1.70, 1.61, 0.94, 0.91, 0.97),
    ("fashion_mnist", "le_net_mnist", "SGD"): (9.20, 13.06, 12.81, 9.69, 10.02, 9.61),
    ("cifar10", "le_net_cifar", "SGD"): (14.23, 46.69, 54.21, 16.22, 16.02, 16.86),
    ("cifar10", "le_net_cifar", "Adam"): (15.92, 40.67, 37.59, 16.34, 17.08, 16.83),
    ("cifar10", "resnet20", "SGD"): (8.63, 32.16, 45.94, 10.05, 11.02, 11.20),
    ("cifar10", "resnet20", "Adam"): (10.01, 29.59, 32.16, 10.59, 11.08, 11.22),
    ("cifar10", "resnet56", "SGD"): (8.30, 34.88, 38.01, 8.20, 8.69, 9.49),
    ("cifar10", "resnet56", "Adam"): (7.83, 29.23, 32.02, 9.19, 10.13, 10.02),
    ("imagenet", "resnet18", "SGD"): (30.39, 85.25, 82.45, 34.97, 37.21, 36.50),
}

#: The only row of table 3 that was trained by Adam, although the column is SGD's (appendix 6.1).
_BY_ADAM = ("imagenet", "resnet18", "dfa")

#: Other names of the same data: `cifar10_benchmark` has the paper's augmentation, the last is a copy as JPEG images.
_SAME_DATA = {"cifar10_benchmark": "cifar10", "parquet:cifar10-jpeg": "cifar10"}

#: Epochs of the paper's recipes.
EPOCHS = {"mnist": 100, "fashion_mnist": 100, "cifar10": 250, "imagenet": 75}


def dataset(config: dict[str, Any]) -> str:
    """Name of a configuration's data set in the paper."""
    name = str(config["data"]["dataset"])
    return _SAME_DATA.get(name, name)


def published_error(config: dict[str, Any]) -> float | None:
    """The paper's test error (%) for the data set, network, optimizer and rule of a run, or None."""
    if config["training"] is None or config["model"].get("train_only"):
        return None
    rule, architecture = config["model"]["mode"]["type"], config["model"]["architecture"]
    optimizer = config["training"]["optimizer"]["type"]
    data = dataset(config)
    if (data, architecture, rule) == _BY_ADAM:
        if optimizer != "Adam":
            return None
        optimizer = "SGD"
    errors = _ERRORS.get((data, architecture, optimizer))
    return None if errors is None or rule not in _RULES else errors[_RULES.index(rule)]


#: Settings that a group's label names if they differ between groups, in addition to the network's arguments.
_TOLD_BY = (
    "model.architecture",
    "data.dataset",
    "training.optimizer.type",
    "training.optimizer.lr",
    "model.checkpoint",
)


#: Settings that may differ between runs of one group.
_OF_A_SEED = (("experiment", "seed"), ("infrastructure", "threads"))


def by_configuration(results: Sequence[Result]) -> list[list[Result]]:
    """Results in groups of equal configuration, sorted by `in_order`.

    Configurations count as equal if they differ only in seed, number of threads and settings that do not change the
    numbers, such as the output folder. Those of robustness studies must also agree in the attacks. Runs on files of
    other contents are in different groups.
    """
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(text_of(_settings(result)), []).append(result)
    return in_order([part for group in groups.values() for part in _by_data(group)], lambda part: part[0])


#: Settings that keep results together, before the rule sorts them.
_TOGETHER = ("data.dataset", "data.target", "model.architecture")


def in_order(members: Iterable[_Member], result: Callable[[_Member], Result]) -> list[_Member]:
    """Members sorted by data set, target and network, as these first appear, then in the order of the rules.

    Args:
        members: anything that stands for a result or a robustness study, such as runs.
        result: function from a member to its result.
    """

    def setting(member: _Member) -> tuple[str, ...]:
        return tuple(str(at(result(member), path)) for path in _TOGETHER)

    kept = list(members)
    first = list(dict.fromkeys(map(setting, kept)))
    return sorted(kept, key=lambda each: (first.index(setting(each)), position(method(result(each)))))


def _by_data(group: list[Result]) -> list[list[Result]]:
    """Parts of a group whose data are the same; results of older versions, which do not say, are in the first part."""
    known = list(dict.fromkeys(filter(None, map(_contents, group))))
    if len(known) < 2:
        return [group]
    return [[each for each in group if (_contents(each) or known[0]) == digest] for digest in known]


def _contents(result: Result) -> str | None:
    """Digest of the contents of a result's data, or None if it is unknown.

    It is unknown for images told apart by their times. Where these are not trained on, but only measured, the digest of
    the times counts all the same, because no weights show whether the data were the same.
    """
    data = result.get("data") or {}
    files = (data.get("files") or {}).values()
    measured = result["config"].get("training") is None
    return data.get("digest") if files and (measured or all("contents" in each for each in files)) else None


def _settings(result: Result) -> dict[Key, Any]:
    """Settings that determine the group of a result or a robustness study, by key path."""
    values = what_counts_in_a_study(result["config"]) if "study" in result else what_counts(result["config"])
    return {key: value for key, value in values.items() if key not in _OF_A_SEED}


def without_copies(results: Sequence[Result]) -> list[Result]:
    """Results without copies, which have equal configuration, seed, final weights and, if known, data."""
    alike: dict[tuple[str, int, str], list[Result]] = {}
    for result in results:
        key = (text_of(_settings(result)), result["config"]["experiment"]["seed"], result["state_hash"])
        alike.setdefault(key, []).append(result)
    return [part[0] for group in alike.values() for part in _by_data(group)]


def method(result: Result) -> str:
    """Name of the rule, or `shallow` if backpropagation trains only a part of the network."""
    rule = str(at(result, "model.mode.type"))
    return "shallow" if rule == "backpropagation" and at(result, "model.train_only") else rule


#: Names of settings whose last word says too little.
_NAMES: dict[Key, str] = {("model", "loss_function", "name"): "loss"}


def label(group: Sequence[Result], groups: Sequence[Sequence[Result]]) -> str:
    """Label of a group: its method, the trained part, and the settings that distinguish it from other groups.

    Examples: `fa`, `shallow (head only)`, `fa depth=3 0.01`, `fa epochs=5`.
    """
    name = _name(group[0])
    alike = [other[0] for other in groups if _name(other[0]) == name]
    parts = [name, *(str(at(group[0], path)) for path in _TOLD_BY if _differs(path, alike))]
    for argument in sorted({key for each in alike for key in each["config"]["model"].get("arguments", {})}):
        path = f"model.arguments.{argument}"
        value = at(group[0], path)
        if value is not None and _differs(path, alike):
            parts.append(f"{argument}={value}")
    told = {*_TOLD_BY, "model.mode.type", "model.train_only"}
    same = [group[0], *(each for each in alike if all(at(each, path) == at(group[0], path) for path in told))]
    counted = [_settings(each) for each in same]
    for key in sorted(differing([each["config"] for each in same], counted)):
        value = counted[0].get(key)
        if key[:2] != ("model", "arguments") and key[:3] != ("model", "mode", "layers") and value not in (None, {}, []):
            parts.append(f"{_NAMES.get(key, key[-1])}={value}")
    mine = _contents(group[0])
    if mine is not None and {_contents(each) for each in same} - {mine, None}:
        parts.append(f"data={mine[:6]}")
    return " ".join(parts)


def _name(result: Result) -> str:
    trained = result["config"]["model"].get("train_only")
    parts = [f"{', '.join(trained)} only"] if trained else []
    for pattern, rule in (at(result, "model.mode.layers") or {}).items():  # type: ignore[attr-defined]
        options = "".join(f" {name}={value}" for name, value in rule["options"].items() if value is not None)
        parts.append(f"{pattern}: {rule['type']}{options}")
    return f"{method(result)} ({', '.join(parts)})" if parts else method(result)


def differs(path: str, groups: Sequence[Sequence[Result]]) -> bool:
    """Whether a configuration key differs between groups."""
    return _differs(path, [group[0] for group in groups])


def _differs(path: str, results: Sequence[Result]) -> bool:
    return len({str(at(result, path)) for result in results}) > 1


def mean_angle(result: Result, key: str, epoch: int) -> float | None:
    """Mean over layers of an angle (degrees) at an entry of the history; None if it was not tracked.

    Args:
        result: the run.
        key: `angles` (alignment angle) or `gradient_angles` (gradient angle).
        epoch: index into the history; 0 is before training, -1 the last epoch.
    """
    if not result["history"]:
        return None
    values = [value for value in result["history"][epoch].get(key, {}).values() if value is not None]
    return statistics.fmean(values) if values else None


def at(result: Result, path: str) -> object:
    """Value of a dotted key path in the result's configuration, or None if the key is missing."""
    value: object = result["config"]
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
