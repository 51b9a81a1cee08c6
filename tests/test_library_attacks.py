"""Square, Auto-PGD and AutoAttack: the library's attacks behind our interface, without the library's defects."""

from __future__ import annotations

import sys
import types
import warnings

import pyautoattack
import pytest
import torch
from pyautoattack import checks
from pyautoattack.autopgd_base import APGDAttack
from torch import nn

from biotorch import _seeding, convert
from biotorch.robustness import PGD, AutoAttack, AutoPGD, Square
from biotorch.robustness.attacks.auto_attack import _possible

ATTACKS = {
    "square": lambda model, *a, **k: Square(model, *a, queries=12, **k),
    "auto_pgd": lambda model, *a, **k: AutoPGD(model, *a, steps=6, **k),
    "auto_attack": AutoAttack,
}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """The standard ensemble in fewer steps: 100 of each attack and 5,000 queries take too long here."""

    def made(*arguments, **options):
        ensemble = library(*arguments, **options)
        for each in (ensemble.apgd, ensemble.apgd_targeted, ensemble.fab):
            each.n_iter = 5
        ensemble.apgd.eot_iter = min(ensemble.apgd.eot_iter, 3)
        ensemble.square.n_queries = 10
        return ensemble

    library = pyautoattack.AutoAttack
    monkeypatch.setattr(pyautoattack, "AutoAttack", made)


def conv(classes=4, dtype=torch.float32, size=8):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        width = 4 * (size - 2) ** 2
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(width, classes)
        )
        images = torch.rand(200, 1, size, size)
    with torch.no_grad():  # all classes occur
        net[-1].bias -= net.eval()(images).mean(0)
    return net.train().to(dtype)


def batch(n=6, classes=4, dtype=torch.float32, model=None):
    images = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    model = model or conv(classes, dtype)
    with torch.no_grad():
        return images, model.eval()(images).argmax(1)


def quiet(attack, images, labels):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return attack.run(images, labels)


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


@pytest.fixture(scope="module")
def trained():
    """A network that tells apart where an image is bright, with images and labels."""
    generator = torch.Generator().manual_seed(1)
    patterns = torch.rand(4, 1, 8, 8, generator=generator)

    def drawn(n):
        labels = torch.randint(4, (n,), generator=generator)
        return (0.4 * patterns[labels] + 0.6 * torch.rand(n, 1, 8, 8, generator=generator)).clamp(0, 1), labels

    model = conv()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        images, labels = drawn(64)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    images, labels = drawn(150)
    assert (model.eval()(images).argmax(1) == labels).double().mean() > 0.9
    return model, images, labels


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.06), ("l2", 0.4)])
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_auto_pgd_is_as_strong_as_pgd(trained, norm, epsilon, loss):
    model, images, labels = trained
    pgd, auto = (
        kind(model, epsilon, norm=norm, steps=40, loss=loss).run(images, labels).robust for kind in (PGD, AutoPGD)
    )
    assert 10 < pgd.sum() < 140  # else the comparison says nothing
    assert auto.sum() <= pgd.sum() + 2


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
    for norm, name, epsilon in (("linf", "Linf", 0.05), ("l2", "L2", 0.35)):
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


def test_restarts_of_auto_pgd_are_those_of_the_library(trained):
    model, images, labels = trained
    own = AutoPGD(model, 0.05, steps=10, restarts=3)
    with torch.random.fork_rng():
        theirs = APGDAttack(model, n_iter=10, eps=0.05, n_restarts=3, seed=0, device="cpu")
        expected = model(theirs.perturb(images, labels)).argmax(1) == labels
    found = own.run(images, labels).robust
    assert abs(int(found.sum()) - int(expected.sum())) <= 3


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
