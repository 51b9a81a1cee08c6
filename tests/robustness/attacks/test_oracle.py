"""FGSM, PGD, EOT-PGD, TPGD and Square against torchattacks 3.5.1, an implementation that others wrote."""

from __future__ import annotations

import pytest
import torch
import torchattacks
from torch import nn

from biotorch import _seeding, data
from biotorch.data import DataConfig
from biotorch.robustness import EOTPGD, FGSM, PGD, TPGD, Normalised, Square


@pytest.fixture(scope="module")
def trained():
    """A small network on digits, images in [0, 1] and labels."""
    digits = data.load(DataConfig(dataset="digits"), 0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    inputs, labels = next(digits.train.batches([torch.arange(len(digits.train))]))
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs), labels).backward()
        optimizer.step()
    images, labels = next(digits.test.batches([torch.arange(200)]))
    mean, std = (torch.tensor(each).view(1, -1, 1, 1) for each in (digits.mean, digits.std))
    model = Normalised(net, digits.mean, digits.std).eval()
    images = (images * std + mean).clamp(0, 1)
    assert (model(images).argmax(1) == labels).double().mean() > 0.9
    return model, images, labels


def accuracy(model, images, labels):
    with torch.no_grad():
        return 100 * float((model(images).argmax(1) == labels).double().mean())


STEPS = {"steps": 10, "step_size": 0.02}
THEIRS = {"steps": 10, "alpha": 0.02}
PAIRS = {
    "fgsm": (lambda m, e, **k: FGSM(m, e), lambda m, e: torchattacks.FGSM(m, eps=e)),
    "pgd": (lambda m, e, **k: PGD(m, e, **STEPS, **k), lambda m, e: torchattacks.PGD(m, eps=e, **THEIRS)),
    "eot_pgd": (
        lambda m, e, **k: EOTPGD(m, e, samples=2, **STEPS, **k),
        lambda m, e: torchattacks.EOTPGD(m, eps=e, eot_iter=2, **THEIRS),
    ),
    "tpgd": (lambda m, e, **k: TPGD(m, e, **STEPS, **k), lambda m, e: torchattacks.TPGD(m, eps=e, **THEIRS)),
}


def their_examples(attack, images, labels):
    """With the random start that ours draws for its first batch."""
    with torch.random.fork_rng():
        torch.manual_seed(_seeding.derive(0, "attack", 0))
        return attack(images, labels)


@pytest.mark.parametrize("epsilon", [0.05, 0.1])
@pytest.mark.parametrize("name", PAIRS)
def test_robust_accuracy_is_within_two_points(trained, name, epsilon):
    model, images, labels = trained
    ours, theirs = PAIRS[name]
    expected = accuracy(model, their_examples(theirs(model, epsilon), images, labels), labels)
    assert 5 < expected < 95  # else the comparison says nothing
    for options in ({}, {"stop_at_success": False}):
        outcome = ours(model, epsilon, **options).run(images, labels)
        assert abs(100 * float(outcome.robust.double().mean()) - expected) <= 2


@pytest.mark.parametrize("name", ["fgsm", "pgd", "eot_pgd"])
def test_the_examples_are_the_same(trained, name):
    model, images, labels = trained
    ours, theirs = PAIRS[name]
    expected = their_examples(theirs(model, 0.1), images, labels)
    found = ours(model, 0.1, stop_at_success=False)(images, labels)
    # Means over the batch and sums differ in the last bits of a gradient, and a sign may turn where it is nearly zero.
    same = ((found - expected).abs() < 1e-5).double().mean()
    assert same > 0.995


@pytest.mark.parametrize(("norm", "name", "epsilon"), [("linf", "Linf", 0.1), ("l2", "L2", 0.8)])
def test_square_fits_its_schedule_to_the_budget(trained, norm, name, epsilon):
    """With few queries as with many, the authors' patches shrink to single pixels; with equal draws all is equal."""
    model, images, labels = trained
    own = Square(model, epsilon, norm=norm, queries=51)
    seed = int(torch.randint(2**31, (), generator=_seeding.generator(_seeding.derive(0, "attack", 0))))
    with torch.random.fork_rng():  # theirs does not count the start as a query
        expected = torchattacks.Square(model, norm=name, eps=epsilon, n_queries=50, seed=seed)(images, labels)
    assert 5 < accuracy(model, expected, labels) < 90
    found = own.run(images, labels)
    moved = (expected != images).flatten(1).any(1)  # theirs returns an image that it did not break as it was
    assert moved.any()
    assert torch.equal(found.robust & ~moved, found.robust)
    assert torch.allclose(found.adversarial[moved], expected[moved], atol=1e-6)


def test_a_stronger_reference_is_told_apart(trained):
    """The bound of two points would see ten steps replaced by one."""
    model, images, labels = trained
    expected = accuracy(model, their_examples(PAIRS["pgd"][1](model, 0.1), images, labels), labels)
    weaker = PGD(model, 0.1, steps=1, step_size=0.02).run(images, labels)
    assert 100 * float(weaker.robust.double().mean()) > expected + 2
