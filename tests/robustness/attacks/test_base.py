"""What holds for every attack: bounds, traces, seeds, errors."""

from __future__ import annotations

import sys
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_names import RULES
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from biotorch import convert
from biotorch.robustness import FGSM, PGD, TPGD, AutoAttack, AutoPGD, RandomSigns, Square, Transfer
from biotorch.robustness.attacks.norms import size
from biotorch.robustness.plan import ATTACKS

#: As few steps as possible.
FAST = {
    "pgd": {"steps": 3},
    "eot_pgd": {"steps": 2, "samples": 2},
    "tpgd": {"steps": 3},
    "few_pixel": {"steps": 2, "population": 8},
    "square": {"queries": 5},
    "auto_pgd": {"steps": 4},
    "cw": {"steps": 3, "searches": 2},
    "deepfool": {"steps": 3},
    "fab": {"steps": 3},
}
#: AutoAttack has a fixed number of steps: some tests of it are slow.
QUICK = sorted(set(ATTACKS) - {"auto_attack"})


def network(classes=4, dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, classes)
        )
        images = torch.rand(100, 1, 4, 4)
    with torch.no_grad():  # all classes occur, and an attack can reach them
        net[-1].bias -= net.eval()(images).mean(0)
    return net.train().to(dtype)


def batch(n=6, dtype=torch.float32, seed=0):
    images = torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return images, network(dtype=dtype).eval()(images).argmax(1)


def make(name, model, **more):
    if name == "few_pixel":
        more.pop("epsilon", None)
        more.pop("norm", None)
    if name == "cw" or (name == "square" and more.get("norm") == "l1"):  # l2 alone; images of 4 x 4 are too small
        more.pop("norm", None)
    return ATTACKS[name](model, **FAST.get(name, {}), **more)


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_the_network_sees_the_memory_format_of_the_images(name, memory_format):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 4))
    seen = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.rand(5, 3, 4, 4).to(memory_format=memory_format)
    make(name, model)(images, model(images).argmax(1))
    del seen[0]  # not the attack's
    assert seen if name != "random_signs" else not seen
    assert all(each.is_contiguous(memory_format=memory_format) for each in seen)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["fgsm", "pgd", "auto_pgd"])
def test_the_feedback_of_every_rule_can_be_followed(name, rule):
    """Ours and the library's: an attack has the labels that a rule may send (`drtp`)."""
    images, labels = batch()
    found = make(name, convert(network(), rule), gradient="feedback", epsilon=0.5)(images, labels)
    assert found.shape == images.shape


def test_the_labels_are_what_drtp_sends():
    images, labels = batch()
    model = convert(network(), "drtp")
    first = FGSM(model, gradient="feedback", epsilon=0.5)(images, labels)
    assert not torch.equal(FGSM(model, gradient="feedback", epsilon=0.5)(images, (labels + 1) % 4), first)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(QUICK),
    norm=st.sampled_from(["linf", "l2", "l1"]),
    epsilon=st.floats(0, 1),
    pixels=st.lists(st.floats(0, 1, width=32), min_size=16, max_size=16),
    label=st.integers(0, 3),
)
def test_bounds_hold_for_any_input(name, norm, epsilon, pixels, label):
    model = network()
    images = torch.stack([torch.tensor(pixels), torch.zeros(16), torch.ones(16)]).view(3, 1, 4, 4)
    found = make(name, model, epsilon=epsilon, norm=norm)(images, torch.full((3,), label))
    assert found.min() >= 0
    assert found.max() <= 1
    change = (found - images).flatten(1)
    if name == "few_pixel":
        assert (change.abs().gt(0).sum(1) <= 1).all()
    else:
        attack = make(name, model, epsilon=epsilon, norm=norm)
        assert size(change, attack.norm).max() <= epsilon + 2e-6


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("rule", [None, "fa", "dfa", "brsf"])
def test_the_network_is_left_as_it_was(name, rule):
    model = network()
    if rule is not None:
        convert(model, rule)
    model.train()
    model[1].eval()
    images, labels = batch()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modes, before = [each.training for each in model.modules()], torch.random.get_rng_state()
    outcome = make(name, model).run(images, labels)
    assert [each.training for each in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not outcome.adversarial.requires_grad
    assert torch.equal(images, batch()[0])


class InPlace(nn.Module):
    def forward(self, images):
        images -= 0.1
        return images


class Shifted(nn.Module):
    def forward(self, images):
        return images - 0.1


@pytest.mark.parametrize("name", ["pgd", "auto_pgd", "square", "random_signs", "transfer"])
def test_a_network_may_write_into_its_images(name):
    images, labels = batch()
    found, expected = (
        Transfer(network(), 0.2, source=each, steps=3)(images, labels)
        if name == "transfer"
        else make(name, each, epsilon=0.2)(images, labels)
        for each in (nn.Sequential(layer, network()) for layer in (InPlace(), Shifted()))
    )
    assert torch.equal(images, batch()[0])
    assert torch.equal(found, expected)


class Products(TorchDispatchMode):
    """Notes which gradients each backward pass of a convolution computes, and the shape of every matrix product."""

    def __init__(self):
        super().__init__()
        self.convolutions, self.matrices = [], set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.convolution_backward.default:
            self.convolutions.append(tuple(args[-1]))  # of input, weight and bias
        elif function is torch.ops.aten.mm.default:
            self.matrices.add(tuple(result.shape))
        return result


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("name", ["fgsm", "pgd", "auto_pgd", "auto_attack"])
@pytest.mark.parametrize(("rule", "gradient"), [(None, "true"), ("kp", "feedback"), ("dkp", "feedback")])
def test_no_attack_computes_the_gradient_of_a_weight(name, rule, gradient):
    model = network()
    images, labels = batch()
    if rule is not None:
        convert(model, rule, seed=0)
    model[0].weight.requires_grad_(False)
    flags = {key: each.requires_grad for key, each in model.named_parameters()}
    with Products() as products, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make(name, model, gradient=gradient, epsilon=1e-3)(images, labels)
        assert not any(mask[1] for mask in products.convolutions)
        assert products.matrices
        assert not products.matrices & {(4, 16), (16, 4)}
    assert {key: each.requires_grad for key, each in model.named_parameters()} == flags
    assert all(each.grad is None for each in model.parameters())


@pytest.mark.parametrize("name", QUICK)
def test_equal_seeds_give_equal_bits(name):
    images, labels = batch()
    one, same = (make(name, network(), seed=5)(images, labels) for _ in range(2))
    assert torch.equal(one, same)


@pytest.mark.parametrize("name", ["pgd", "random_signs", "square", "auto_pgd"])
def test_other_seeds_give_others(name):
    images, labels = batch()
    found = [make(name, network(), seed=seed, epsilon=0.4)(images, labels) for seed in (0, 1)]
    assert not torch.equal(*found)


@pytest.mark.parametrize("name", QUICK)
def test_float64_and_one_image(name):
    images, labels = batch(1, torch.float64)
    found = make(name, network(dtype=torch.float64))(images, labels)
    assert found.dtype == torch.float64
    assert found.shape == images.shape


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - {"few_pixel"}))
def test_without_a_radius_nothing_moves(name):
    images, labels = batch()
    assert torch.equal(make(name, network(), epsilon=0)(images, labels), images)


def test_a_misclassified_image_counts_and_is_left_alone():
    images, labels = batch()
    wrong = (labels + 1) % 4
    outcome = PGD(network(), 0.3).run(images, wrong)
    assert not outcome.clean.any()
    assert not outcome.robust.any()
    assert torch.equal(outcome.adversarial, images)
    assert outcome.queries.tolist() == [0] * 6


def test_a_repaired_image_does_not_count_as_robust():
    images, labels = batch()
    wrong = (labels + 1) % 4
    assert not RandomSigns(network(), 1.0).run(images, wrong).robust.any()


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.rows = network(), 0

    def forward(self, images):
        self.rows += len(images)
        return self.net(images)


def test_queries_are_counted():
    images, labels = batch()
    judging = 2 * len(images)  # the clean pass, and the one that judges
    for attack in (FGSM, lambda m: PGD(m, 1e-4, steps=7), lambda m: PGD(m, 0.3, steps=7), lambda m: TPGD(m, steps=3)):
        model = Counting()
        made = attack(model)
        outcome = made.run(images, labels)
        again = 0 if isinstance(made, FGSM) else len(images)  # PGD looks whether outputs repeat
        assert int(outcome.queries.sum()) == model.rows - judging - again
    model = Counting()
    outcome = Square(model, 1e-4, queries=20).run(images, labels)
    assert outcome.queries.tolist() == [20] * 6


def test_restarts_never_hurt():
    images, labels = batch(40)
    one, five = (PGD(network(), 0.02, steps=2, restarts=count).run(images, labels).robust for count in (1, 5))
    assert not (five & ~one).any()


def test_all_steps_are_made_where_asked():
    images, labels = batch()
    outcome = PGD(network(), 0.3, steps=5, stop_at_success=False).run(images, labels)
    assert outcome.losses.shape == (6, 6)
    assert not outcome.losses.isnan().any()


def test_a_gradient_that_is_no_use_is_told():
    class Detached(nn.Module):
        def forward(self, images):
            return images.detach().flatten(1)[:, :3]

    class Broken(nn.Module):
        def forward(self, images):
            return images.flatten(1)[:, :3] + 0 * (images.flatten(1)[:, :3] - images.flatten(1)[:, :3].detach()).sqrt()

    images = batch()[0]
    for model in (Detached(), Broken()):
        labels = model(images).argmax(1)
        for name in ("fgsm", "pgd", "eot_pgd", "tpgd", "auto_pgd"):
            attack = make(name, model, epsilon=1e-4)
            with pytest.warns(UserWarning, match="gradient at 6 images that withstand it.*detach") as told:
                outcome = attack.run(images, labels)
            assert len(told) == 1
            assert told[0].filename == __file__
            assert outcome.blind.all()
            assert outcome.adversarial.isfinite().all()
            with pytest.warns(UserWarning, match="gradient at 6 images"):
                attack(images, labels)
            attack.warns = False
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                attack.run(images, labels)


@pytest.mark.usefixtures("short")
def test_a_useless_gradient_at_broken_images_warns_of_nothing():
    """At epsilon 1 random search breaks all images, with no help from the gradient that AutoAttack followed before."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    model.forward = lambda images: nn.Sequential.forward(model, images.detach())
    images = batch()[0]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert not AutoAttack(model, 1.0).run(images, model(images).argmax(1)).robust.any()
    assert not any("gradient at" in str(each.message) for each in told)


IMAGES, LABELS = batch()


@pytest.mark.parametrize(
    ("make_attack", "images", "labels", "message"),
    [
        (lambda m: PGD(m, -0.1), IMAGES, LABELS, "epsilon"),
        (lambda m: PGD(m, float("nan")), IMAGES, LABELS, "epsilon"),
        (lambda m: PGD(m, True), IMAGES, LABELS, "epsilon"),
        (lambda m: PGD(m, "8/255"), IMAGES, LABELS, "epsilon"),
        (lambda m: PGD(m, norm="l3"), IMAGES, LABELS, "linf, l2, l1, not 'l3'$"),
        (lambda m: PGD(m, norm="l0"), IMAGES, LABELS, "few_pixel"),
        (lambda m: PGD(m, steps=0), IMAGES, LABELS, "steps"),
        (lambda m: PGD(m, steps=1.5), IMAGES, LABELS, "steps"),
        (lambda m: PGD(m, step_size=0), IMAGES, LABELS, "step_size"),
        (lambda m: PGD(m, gradient="ture"), IMAGES, LABELS, "'true' or 'feedback'"),
        (lambda m: PGD(m, loss="dlrr"), IMAGES, LABELS, "ce, margin, dlr"),
        (lambda m: PGD(m, batch_size=0), IMAGES, LABELS, "batch_size"),
        (lambda m: AutoPGD(m, loss="margin"), IMAGES, LABELS, "ce and dlr"),
        (lambda m: Square(m, queries=0), IMAGES, LABELS, "queries"),
        (lambda m: Square(m, p_init=2.0), IMAGES, LABELS, "p_init"),
        (PGD, IMAGES + 1, LABELS, "Normalised"),
        (PGD, IMAGES * float("nan"), LABELS, "from 0 to 1"),
        (PGD, (255 * IMAGES).byte(), LABELS, "float32"),
        (PGD, IMAGES[:0], LABELS[:0], "n > 0"),
        (PGD, IMAGES, LABELS[:3], "labels"),
        (PGD, IMAGES, LABELS.float(), "int64"),
    ],
)
def test_mistakes_are_told(make_attack, images, labels, message):
    with pytest.raises(ValueError, match=message):
        make_attack(network())(images, labels)


def test_arguments_that_an_attack_does_not_take():
    with pytest.raises(TypeError, match="KL divergence"):
        TPGD(network(), loss="ce")
    with pytest.raises(TypeError, match="their own"):
        AutoAttack(network(), loss="ce")
    with pytest.raises(TypeError, match="stepz"):
        PGD(network(), stepz=3)


def test_a_printed_attack_tells_all_of_its_settings():
    text = repr(PGD(network(), 0.1, steps=5))
    for part in ("epsilon=0.1", "steps=5", "step_size=0.05", "gradient='true'", "seed=0", "restarts=1"):
        assert part in text


# The attacks of pyautoattack --------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_autoattack_takes_few_classes(classes):
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, classes))
    images = batch(4)[0]
    labels = model(images).argmax(1)
    trace = sys.gettrace()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcome = AutoAttack(model, 0.9).run(images, labels)
    assert not outcome.robust.any()
    assert sys.gettrace() is trace


def test_tracing_goes_on_after_autoattack():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    images = batch(2)[0]
    labels = model(images).argmax(1)

    def tracer(*_):
        return None

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        AutoAttack(model, 0.9)(images, labels)
        kept = sys.gettrace() is tracer
    finally:
        sys.settrace(before)
    assert kept


def test_auto_pgd_is_as_strong_as_pgd():
    images, labels = batch(60)
    for epsilon in (0.1, 0.3):
        pgd, auto = (
            kind(network(), epsilon, steps=40).run(images, labels).robust.double().mean() for kind in (PGD, AutoPGD)
        )
        assert auto <= pgd + 0.02


def test_square_breaks_what_outputs_alone_can_break():
    images, labels = batch(20)
    weak, strong = (Square(network(), 0.4, queries=count).run(images, labels).robust.sum() for count in (2, 300))
    assert strong < weak


@pytest.mark.parametrize("gradient", ["true", "feedback"])
@pytest.mark.parametrize("rule", ["fa", "dfa"])
def test_the_librarys_attacks_follow_either_gradient(rule, gradient):
    images, _ = batch(40)
    model = convert(network(), rule)
    labels = model.eval()(images).argmax(1)
    plain = network()
    plain.load_state_dict({key: value for key, value in model.state_dict().items() if key in plain.state_dict()})
    found, expected = (AutoPGD(each, 0.3, steps=20, gradient=gradient)(images, labels) for each in (model, plain))
    assert torch.equal(found, expected) == (gradient == "true")


def test_what_the_library_has_to_say_is_a_warning():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Softmax(1))
    images = batch(2)[0]
    labels = model(images).argmax(1)
    with pytest.warns(UserWarning, match="pyautoattack.*probability"):
        AutoAttack(model, 0.9)(images, labels)
