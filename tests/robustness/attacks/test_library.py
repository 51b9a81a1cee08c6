"""Square, Auto-PGD and AutoAttack behind our interface: queries, neutrality, gradients, strength."""

from __future__ import annotations

import types

import pytest
import torch
from library_attacks import batch, conv, quiet
from pyautoattack.autopgd_base import APGDAttack
from torch import nn

from biotorch import convert
from biotorch.robustness import PGD, AutoAttack, AutoPGD, Square

ATTACKS = {
    "square": lambda model, *a, **k: Square(model, *a, queries=12, **k),
    "auto_pgd": lambda model, *a, **k: AutoPGD(model, *a, steps=6, **k),
    "auto_attack": AutoAttack,
}


pytestmark = pytest.mark.usefixtures("short")


class Counting(nn.Module):
    """Counts the rows it sees, and remembers which image each was nearest to."""

    def __init__(self, net, images):
        super().__init__()
        self.net, self.images, self.seen = net, images, torch.zeros(len(images), dtype=torch.int64)

    def forward(self, points):
        nearest = torch.cdist(points.flatten(1), self.images.flatten(1)).argmin(1)
        self.seen += nearest.bincount(minlength=len(self.seen))
        return self.net(points)


# What is counted, and what is left alone ------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [1e-4, 0.02])
@pytest.mark.parametrize(
    ("attack", "judged"),
    [
        (lambda m, e: Square(m, e, queries=15), 1),
        (lambda m, e: Square(m, e, queries=15, restarts=3), 3),
        (lambda m, e: AutoPGD(m, e, steps=6, restarts=2, samples=2), 2),
        (AutoAttack, 20),
        (lambda m, e: AutoAttack(m, e, version="rand"), 2),
    ],
)
def test_queries_are_counted_per_image(attack, judged, epsilon):
    images, labels = batch(12)
    labels[0] = (labels[0] + 1) % 4  # one is misclassified anyway, and is not attacked
    model = Counting(conv(), images)
    made = attack(model, epsilon)
    outcome = quiet(made, images, labels)
    assert outcome.queries[0] == 0
    # Beside the queries: the clean pass, that which judges the result, and one after each run that an image was in.
    extra = model.seen - outcome.queries - 2
    assert extra[0] == 0
    assert (extra[1:] >= 1).all()
    assert (extra <= judged).all()
    assert (outcome.queries <= made.passes[0]).all()
    if epsilon == 1e-4:
        assert outcome.robust.sum() >= 8
        assert len(extra[outcome.robust].unique()) == 1
        assert len(outcome.queries[outcome.robust].unique()) == 1
    else:
        assert not outcome.robust.all()


def test_the_bound_on_passes_is_reached():
    """By images that withstand, in a network with ten classes."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    images = batch()[0]
    with torch.no_grad():
        labels = model(images).argmax(1)
    attacks = [
        Square(model, 1e-7, queries=15, restarts=2),
        AutoPGD(model, 1e-7, steps=6, restarts=2, samples=3),
        AutoAttack(model, 1e-7),
        AutoAttack(model, 1e-7, version="rand"),
    ]
    for attack in attacks:
        outcome = quiet(attack, images, labels)
        assert outcome.robust.all()
        assert outcome.queries.tolist() == [attack.passes[0]] * 6


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("rule", [None, "dfa"])
def test_the_network_and_the_global_state_are_left_as_they_were(name, rule):
    model = conv()
    if rule:
        convert(model, rule)
    model.train()
    model[1].eval()
    images, _ = batch()
    labels = batch(model=model)[1]
    model.train()
    model[1].eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    gradients = [torch.full_like(each, 7.0) for each in model.parameters()]
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient.clone()
    modes, before = [each.training for each in model.modules()], torch.random.get_rng_state()
    quiet(ATTACKS[name](model, 0.01), images, labels)
    assert [each.training for each in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert all(each.requires_grad for each in model.parameters())
    assert torch.equal(images, batch()[0])


@pytest.mark.parametrize("name", ATTACKS)
def test_equal_seeds_give_equal_bits_and_others_do_not(name):
    images, labels = batch(12)
    found = [quiet(ATTACKS[name](conv(), 0.02, seed=seed), images, labels) for seed in (5, 5, 6)]
    assert torch.equal(found[0].adversarial, found[1].adversarial)
    assert torch.equal(found[0].queries, found[1].queries)
    assert not torch.equal(found[0].adversarial, found[2].adversarial)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("count", [1, 5])
def test_float64_and_one_image(name, norm, count):
    images, labels = batch(count, dtype=torch.float64)
    outcome = quiet(ATTACKS[name](conv(dtype=torch.float64), 0.3, norm=norm), images, labels)
    change = (outcome.adversarial - images).flatten(1)
    assert outcome.adversarial.dtype == torch.float64
    assert change.abs().sum() > 0
    assert (change.abs().amax(1) if norm == "linf" else change.norm(dim=1)).max() <= 0.3 + 1e-12
    assert outcome.adversarial.min() >= 0
    assert outcome.adversarial.max() <= 1


@pytest.mark.parametrize("name", ATTACKS)
def test_outputs_may_be_an_object_with_logits(name):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = conv()

        def forward(self, images):
            return types.SimpleNamespace(logits=self.net(images))

    images, labels = batch()
    found, plain = (quiet(ATTACKS[name](model, 0.02), images, labels) for model in (Wrapped(), conv()))
    assert torch.equal(found.adversarial, plain.adversarial)


# Gradients ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["auto_pgd", "auto_attack"])
@pytest.mark.parametrize("gradient", ["true", "feedback"])
@pytest.mark.parametrize("rule", ["fa", "dfa"])
def test_either_gradient_of_a_converted_network(name, gradient, rule):
    model = convert(conv(), rule)
    plain = conv()
    plain.load_state_dict({key: value for key, value in model.state_dict().items() if key in plain.state_dict()})
    images, labels = batch(12, model=plain)
    found, expected = (
        quiet(ATTACKS[name](each, 0.01, gradient=gradient), images, labels).adversarial for each in (model, plain)
    )
    assert torch.equal(found, expected) == (gradient == "true")


@pytest.mark.parametrize("kind", ["detached", "not finite"])
@pytest.mark.parametrize("name", ["auto_pgd", "auto_attack"])
def test_a_gradient_that_is_no_use_is_told_and_does_no_harm(name, kind):
    class Blind(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4))

        def forward(self, images):
            values = images.flatten(1)[:, :4]
            if kind == "detached":
                return values.detach() * self.scale
            return values + 0 * (values - values.detach()).sqrt()

    images = batch()[0]
    labels = Blind()(images).argmax(1)
    outcome = quiet(ATTACKS[name](Blind(), 0.001), images, labels)
    assert outcome.blind.all()
    assert outcome.adversarial.isfinite().all()
    assert not quiet(ATTACKS[name](conv(), 0.001), *batch()).blind.any()


# Strength -------------------------------------------------------------------------------------------


def test_square_breaks_a_linear_network_in_few_queries():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    images, labels = batch(20, model=model)
    assert not Square(model, 0.9, queries=60).run(images, labels).robust.any()
    assert Square(model, 0.001, queries=60).run(images, labels).robust.sum() >= 15


def test_square_stops_where_it_has_broken_an_image():
    images, labels = batch(20)
    outcome = Square(conv(), 0.3, queries=300).run(images, labels)
    assert not outcome.robust.any()
    assert outcome.queries.max() < 300


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.06), ("l2", 0.4)])
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_auto_pgd_is_as_strong_as_pgd(trained, norm, epsilon, loss):
    model, images, labels = trained
    pgd, auto = (
        kind(model, epsilon, norm=norm, steps=40, loss=loss).run(images, labels).robust for kind in (PGD, AutoPGD)
    )
    assert 10 < pgd.sum() < 140  # else the comparison says nothing
    assert auto.sum() <= pgd.sum() + 2


def test_restarts_of_auto_pgd_are_those_of_the_library(trained):
    model, images, labels = trained
    own = AutoPGD(model, 0.05, steps=10, restarts=3)
    with torch.random.fork_rng():
        theirs = APGDAttack(model, n_iter=10, eps=0.05, n_restarts=3, seed=0, device="cpu")
        expected = model(theirs.perturb(images, labels)).argmax(1) == labels
    found = own.run(images, labels).robust
    assert abs(int(found.sum()) - int(expected.sum())) <= 3
