"""AutoAttack: the library's ensemble, its warnings and its bounds."""

from __future__ import annotations

import sys
import warnings

import pyautoattack
import pytest
import torch
from library_attacks import batch, conv, quiet
from pyautoattack import checks
from torch import nn

from biotorch import _seeding, convert
from biotorch.robustness import AutoAttack, AutoPGD, Square
from biotorch.robustness.attacks.auto_attack import _possible

pytestmark = pytest.mark.usefixtures("short")


# Strength -------------------------------------------------------------------------------------------


def test_auto_attack_is_as_strong_as_each_of_its_attacks(trained):
    model, images, labels = trained
    images, labels = images[:60], labels[:60]
    whole = quiet(AutoAttack(model, 0.06), images, labels).robust.sum()
    for part in (AutoPGD(model, 0.06, steps=5), Square(model, 0.06, queries=11)):
        assert whole <= part.run(images, labels).robust.sum() + 1
    assert 0 < whole < 60


def test_the_ensemble_is_that_of_the_library(trained):
    """The library's own evaluation, given our seed, breaks the same images, and its examples are ours."""
    model, images, labels = trained
    images, labels = images[:80], labels[:80]
    for norm, name, epsilon in (("linf", "Linf", 0.05), ("l2", "L2", 0.35), ("l1", "L1", 1.5)):
        generator = _seeding.generator(_seeding.derive(0, "attack", 0))
        seed = int(torch.randint(2**31, (), generator=generator))
        library = pyautoattack.AutoAttack(model.eval(), eps=epsilon, norm=name, seed=seed, device="cpu")
        library.apgd_targeted.n_target_classes = library.fab.n_target_classes = 3
        trace = sys.gettrace()
        with torch.random.fork_rng():
            try:
                expected, _ = library.run_standard_evaluation(images, labels, batch_size=80)
            finally:
                sys.settrace(trace)
        robust = model(expected).argmax(1) == labels
        outcome = quiet(AutoAttack(model, epsilon, norm=norm), images, labels)
        assert 5 < robust.sum() < 75
        assert (outcome.robust != robust).sum() <= 1
        both = ~robust & ~outcome.robust
        same = (outcome.adversarial[both] - expected[both]).abs().flatten(1).amax(1) < 1e-5
        assert same.double().mean() > 0.95


# Few classes, odd images, warnings ---------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 4, 5])
@pytest.mark.parametrize("version", ["standard", "rand"])
def test_few_classes(classes, version):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    images, labels = batch(8, model=model)
    assert not quiet(AutoAttack(model, 0.9, version=version), images, labels).robust.any()
    outcome = quiet(AutoAttack(model, 1e-6, version=version), images, labels)
    assert outcome.robust.sum() >= 7
    assert (outcome.queries <= AutoAttack(model, version=version).passes[0]).all()


def test_what_runs_with_few_classes():
    standard = ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert _possible(standard, 10) == _possible(standard, 4) == standard
    assert _possible(standard, 3) == ["apgd-ce", "apgd-dlr", "fab-t", "square"]
    assert _possible(standard, 2) == ["apgd-ce", "fab-t", "square"]
    assert _possible(["apgd-ce", "apgd-dlr"], 2) == ["apgd-ce"]


def test_mistakes_are_told():
    images, _ = batch()
    two = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with pytest.raises(ValueError, match="three classes"):
        AutoPGD(two, loss="dlr")(*batch(model=two))
    with pytest.raises(ValueError, match="'standard' or 'rand'"):
        AutoAttack(conv(), version="plus")
    flat = nn.Linear(64, 4)
    for attack in (Square(flat), AutoAttack(flat)):
        with pytest.raises(ValueError, match=r"\(n, C, H, W\)"):
            attack(images.flatten(1), flat(images.flatten(1)).argmax(1))
    with pytest.raises(ValueError, match="12 x 12"):
        Square(conv(size=12), norm="l2")(
            torch.rand(1, 1, 12, 12), conv(size=12).eval()(torch.rand(1, 1, 12, 12)).argmax(1)
        )


@pytest.mark.parametrize("size", range(3, 40))
def test_square_in_l2_works_or_says_why_not(size):
    model = nn.Sequential(nn.Flatten(), nn.Linear(size * (size + 1), 3))
    for images in (torch.rand(2, 1, size, size + 1), torch.rand(2, 1, size + 1, size)):
        labels = model(images).argmax(1)
        try:
            found = Square(model, 0.5, norm="l2", queries=8)(images, labels)
        except ValueError as error:
            assert "fails in l2" in str(error)  # noqa: PT017
            with pytest.raises((RuntimeError, ZeroDivisionError)):
                _library_square(model, images, labels)
        else:
            assert found.shape == images.shape
        assert Square(model, 0.5, queries=8)(images, labels).shape == images.shape


def _library_square(model, images, labels):
    attack = pyautoattack.square.SquareAttack(model, norm="L2", n_queries=8, eps=0.5)
    attack.init_hyperparam(images)
    with torch.random.fork_rng():
        attack.attack_single_run(images, labels)


def test_a_tracer_stays():
    images, labels = batch(2)

    def tracer(*_):
        return None

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        quiet(AutoAttack(conv(), 0.9), images, labels)
        kept = sys.gettrace() is tracer
    finally:
        sys.settrace(before)
    assert kept


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = conv()

    def forward(self, images):
        return self.net(images) + 0.02 * torch.randn(len(images), 4)


class Differentiating(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = conv()

    def forward(self, images):
        with torch.enable_grad():
            points = images.detach().requires_grad_()
            torch.autograd.grad(self.net(points).sum(), points)
        return self.net(images)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Noisy, "randomized"),
        (Differentiating, "dynamic"),
        (lambda: nn.Sequential(conv(), nn.Softmax(1)), "probability"),
    ],
)
def test_what_the_library_has_to_say_is_a_warning_once(model, message):
    images, labels = batch(12)
    attack = AutoAttack(model(), 0.01, batch_size=4)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        attack.run(images, labels)
    found = [each for each in told if message in str(each.message)]
    assert len(found) == 1
    assert issubclass(found[0].category, UserWarning)
    assert "pyautoattack" in str(found[0].message)


def test_a_dynamic_network_does_not_stain_the_next_one():
    checks.funcs["grad"] = 5
    images, labels = batch(4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AutoAttack(conv(), 0.001, version="rand").run(images, labels)


@pytest.mark.parametrize("gradient", ["true", "feedback"])
def test_an_ordinary_network_gets_no_warning(gradient):
    model = convert(conv(), "dfa")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AutoAttack(model, 0.0001, gradient=gradient).run(*batch(12, model=model))


def test_where_square_alone_succeeds_a_warning_tells():
    class Masked(nn.Module):
        """Its gradient leads nowhere: only outputs tell."""

        def forward(self, images):
            return (images.detach().flatten(1) @ torch.linspace(-1, 1, 64)[:, None]) * torch.tensor([[1.0, -1.0]])

    images, labels = batch(10, model=Masked())
    with pytest.warns(UserWarning, match="Square Attack has decreased"):
        outcome = AutoAttack(Masked(), 0.5).run(images, labels)
    assert not outcome.robust.all()
