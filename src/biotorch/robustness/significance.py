"""How sure a figure is: an interval for a share, and a test whether one attack is stronger than another."""

from __future__ import annotations

import math

from torch import Tensor

#: Of the normal distribution, for 95 %.
_QUANTILE = 1.959964

#: How unlikely a difference has to be by chance to be called more than noise. A study makes tens of comparisons.
NOISE = 0.001


def interval(successes: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927), in percent."""
    z2, share = _QUANTILE**2, successes / n
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _QUANTILE / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


def chance(wins: int, losses: int) -> float:
    """The probability of at least `wins` heads in `wins + losses` tosses of a coin: a one-sided sign test."""
    n = wins + losses
    logarithms = (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(wins, n + 1))
    return min(1.0, sum(math.exp(value - n * math.log(2)) for value in logarithms))


def beats(attack: Tensor, other: Tensor) -> bool:
    """Whether an attack breaks more images than another by more than noise.

    The paired sign test (McNemar 1947), at `NOISE`: only images on which the two differ count.

    Args:
        attack, other: (n,) bool, whether each image withstands.
    """
    wins, losses = int((other & ~attack).sum()), int((attack & ~other).sum())
    return wins > losses and chance(wins, losses) < NOISE
