"""Intervals, tests and cosines of a measurement."""

import math

import pytest
from studies import network, quick

from biotorch.robustness.measurement import chance, interval


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(0, 10, 0, 27.75), (5, 10, 23.66, 76.34), (10, 10, 72.25, 100), (1, 2, 9.45, 90.55), (500, 1000, 46.91, 53.09)],
)
def test_wilson(successes, n, low, high):
    assert interval(successes, n) == pytest.approx((low, high), abs=0.006)


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (0, 5), (10, 0), (9, 1), (14, 2), (60, 40), (600, 400)])
def test_sign_test(wins, losses):
    n = wins + losses
    exact = sum(math.comb(n, k) for k in range(wins, n + 1)) / 2**n
    assert chance(wins, losses) == pytest.approx(exact, rel=1e-9)


def test_the_cosine_of_one_gradient_is_one(data, converted):
    assert quick(network(), data, attacks=["fgsm"]).cosine == 1
    assert abs(quick(converted, data, attacks=["fgsm"]).cosine) < 0.9
