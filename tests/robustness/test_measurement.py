"""Intervals, tests and cosines of a measurement."""

import math

import pytest
from studies import network, quick

from biotorch.robustness.evidence import Evidence, along_true, is_black_box, strongest
from biotorch.robustness.measurement import Measurement, chance, interval


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


def measured(name, role, epsilon, broken, gradient=None):
    """Measurement of 40 images, of which an attack breaks the first few."""
    return Measurement(
        name=name,
        label=name,
        gradient=gradient,
        epsilon=epsilon,
        purpose="figure",
        settings={},
        n=40,
        clean_accuracy=100.0,
        robust_accuracy=100 - 2.5 * broken,
        interval=(0.0, 100.0),
        robust="0" * broken + "1" * (40 - broken),
        queries={"mean": 1.0, "max": 1.0, "total": 40.0},
        blind=0,
        rising=None,
        seconds=0.0,
        identity="",
        role=role,
    )


@pytest.mark.parametrize(("at", "about"), [(0.1, "attack"), (0.2, "attack"), (0.3, "reader")])
def test_a_black_box_that_wins_beyond_the_verdict_is_a_hint(at, about):
    """The verdict is given at 0.2; PGD breaks 5 images everywhere, the black box 20 more at one epsilon."""
    epsilons = (0.1, 0.2, 0.3)
    found = [measured("pgd", "steps", each, 5, "true") for each in epsilons]
    found += [measured("square", "black box", each, 25 if each == at else 5) for each in epsilons]
    evidence = Evidence(found, "pgd", 0.2, 1.0, look=None)
    check = strongest(evidence, "black box", "attack", is_black_box, along_true)
    assert (check.fired, check.about, check.figures["epsilon"]) == (True, about, at)
