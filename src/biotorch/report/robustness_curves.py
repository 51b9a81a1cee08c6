"""The curves of robustness studies: accuracy against epsilon or pixels, by network and variant of an attack.

A study is a dict as read from JSON: `config` of the run, and under `study` what `Study.to_json` tells.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from biotorch.experiment.results import Result
from biotorch.report.groups import by_configuration, label, method
from biotorch.report.style import style
from biotorch.robustness.significance import interval

Measurement = Mapping[str, Any]

#: Of networks of one rule.
_FILLS = ("full", "none", "left", "bottom")


@dataclasses.dataclass(frozen=True)
class Network:
    """The studies of a configuration, and how its curves are drawn."""

    name: str
    studies: list[Result]
    look: dict[str, Any]

    @property
    def seeds(self) -> int:
        return len({study["config"]["experiment"]["seed"] for study in self.studies})

    @property
    def one_gradient(self) -> bool:
        """Whether the gradient that the network is trained with is the true one."""
        return bool(self.studies[0]["config"]["model"]["mode"]["type"] == "backpropagation")


def figures_of(study: Result) -> list[Measurement]:
    return [each for each in study["study"]["measurements"] if each["purpose"] == "figure"]


def of_attack(studies: Sequence[Result], attack: str) -> list[Measurement]:
    return [each for study in studies for each in figures_of(study) if each["attack"] == attack]


def networks_of(studies: Sequence[Result]) -> list[Network]:
    """One per configuration; those that share a colour differ in how their markers are filled."""
    groups = by_configuration(studies)
    architectures = {group[0]["config"]["model"]["architecture"] for group in groups}
    networks: list[Network] = []
    for group in groups:
        name, architecture = label(group, groups), group[0]["config"]["model"]["architecture"]
        if len(architectures) > 1 and architecture not in name.split():
            name = f"{name} {architecture}"
        color, marker = style(method(group[0]))
        shared = sum(each.look["color"] == color for each in networks)
        look = {"color": color, "marker": marker, "fillstyle": _FILLS[shared % len(_FILLS)]}
        networks.append(Network(name, group, look))
    return networks


def words_of(each: Measurement) -> tuple[str, ...]:
    """What an attack was told, the x of its curve left out."""
    words = [word for word in each["label"].split()[1:] if word.split("=")[0] not in ("pixels", "queries")]
    queries = each["settings"].get("queries")
    return (*([f"{queries:,} queries"] if queries else []), *words)


def variants_of(studies: Sequence[Result], attack: str) -> dict[tuple[str, ...], str]:
    """The variants of an attack, each with what tells it apart; queries are always told."""
    variants = list(dict.fromkeys(words_of(each) for each in of_attack(studies, attack)))
    common = set.intersection(*(set(words) for words in variants))
    return {
        words: " ".join(word for word in words if word not in common or word.endswith(" queries")) for words in variants
    }


def x_of(each: Measurement) -> float:
    return float(each["settings"]["pixels"] if each["attack"] == "few_pixel" else each["epsilon"])


def curve_of(
    network: Network, chosen: Callable[[Measurement], bool]
) -> tuple[list[float], list[float], list[float], list[float]] | None:
    """x, accuracy, and the lower and upper end of its band, of the measurements that are `chosen`."""
    seeds: dict[int, dict[float, tuple[float, float, float]]] = {}
    for study in network.studies:
        for each in filter(chosen, figures_of(study)):
            points = seeds.setdefault(study["config"]["experiment"]["seed"], {})
            clean, n = each["clean_accuracy"], each["n"]
            points.setdefault(0.0, (clean, *interval(round(clean * n / 100), n)))
            points[x_of(each)] = (each["robust_accuracy"], *each["interval"])
    if not seeds:
        return None
    x = sorted(set.intersection(*(set(points) for points in seeds.values())))
    if len(seeds) == 1:
        [points] = seeds.values()
        mean, low, high = ([points[each][part] for each in x] for part in range(3))
        return x, mean, low, high
    values = [[points[each][0] for points in seeds.values()] for each in x]
    mean, spread = [statistics.fmean(each) for each in values], [statistics.stdev(each) for each in values]
    low = [m - s for m, s in zip(mean, spread, strict=True)]
    high = [m + s for m, s in zip(mean, spread, strict=True)]
    return x, mean, low, high
