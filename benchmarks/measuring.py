"""The measuring core: interleaved rounds, ratios within a round, medians and quartiles, exponents of growth."""

from __future__ import annotations

import dataclasses
import math
import random
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

_Case = TypeVar("_Case", bound=Hashable)


def interleaved(cases: Mapping[_Case, Callable[[], float]], rounds: int) -> dict[_Case, list[float]]:
    """Cost of every case in every round: {case: [cost of round 1, ...]}.

    Each round runs every case once, in an order drawn anew. Whatever else the machine does hits all cases of a round,
    so costs are compared within a round, and no case always follows the same other.
    """
    costs: dict[_Case, list[float]] = {case: [] for case in cases}
    for _ in range(rounds):
        for case in random.sample(list(cases), len(cases)):
            costs[case].append(cases[case]())
    return costs


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median and quartiles of a quantity over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Spread of one or more values; with a single value, all three are equal."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


def ratio(own: Sequence[float], reference: Sequence[float]) -> Spread:
    """Spread of the ratios of two costs, each taken within a round."""
    return Spread.of([mine / other for mine, other in zip(own, reference, strict=True)])


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Exponent p of cost ~ size^p, by least squares on logarithms over the upper half of the sizes (two at least).

    The lower half is left out, because there the cost is mostly what does not depend on the size.

    Raises:
        ValueError: there are fewer than two sizes.
    """
    count = max(2, math.ceil(len(sizes) / 2))
    pairs = sorted(zip(sizes, costs, strict=True))[-count:]
    x, y = ([math.log(value) for value in column] for column in zip(*pairs, strict=True))
    if len(x) < 2:
        raise ValueError("an exponent needs two sizes at least")
    return statistics.linear_regression(x, y).slope
