"""The rules that learn their B do what their papers' equations say, in float64."""

import itertools

import pytest
import reference_updates as reference
import torch
from networks import batch, labels, mlp
from rule_names import RULES
from torch import nn
from torch.nn import functional as F

import biotorch
from biotorch import _seeding
from biotorch.rules import Update
from biotorch.testing import LAYER_NAMES, assert_close, images, loss_of, net

#: How each rule that learns its B does so, in `reference_updates`; a rule without an entry fails a test.
UPDATES = {
    "wm": reference.weight_mirror,
    "ia": reference.information_alignment,
    "sa": reference.symmetric_alignment,
    "sham": reference.copying,
    "brsf": reference.redrawing,
}
EXACT = {"rtol": 1e-10, "atol": 1e-12}


def matrices(rows: int = 4, columns: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(rows, columns, dtype=torch.float64), torch.randn(rows, columns, dtype=torch.float64)


def updated(rule: str, weight, feedback, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """B after one update, and the noise that a rule with that generator has seen."""
    draw = lambda: torch.Generator().manual_seed(5)  # noqa: E731
    new = feedback.clone()
    biotorch.rules.make(rule, **options).after_update(Update(weight, new, draw))
    return new, Update(weight, new, draw).noise(options.get("mirror_batch", options.get("noise_batch", 1)))


@pytest.mark.parametrize("limit", [100.0, 0.5])
def test_the_weight_mirror_is_its_equation(limit):
    weight, feedback = matrices()
    options = {"mirror_rate": 0.3, "mirror_decay": 0.2, "mirror_batch": 7, "growth_limit": limit}
    found, noise = updated("wm", weight, feedback, **options)
    torch.testing.assert_close(found, reference.weight_mirror(feedback, weight, noise, 0.3, 0.2, limit), **EXACT)


@pytest.mark.parametrize("groups", [1, 4])
def test_growth_control_takes_the_strength_that_a_convolution_sends_back(groups):
    """White noise comes back from it, inside an image, no stronger than the limit."""
    torch.manual_seed(0)
    layer = biotorch.convert(nn.Conv2d(4, 8, 3, padding=1, groups=groups), "wm", growth_limit=0.7, seed=1)
    with torch.no_grad():
        layer.weight.mul_(5)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-9)
    for _ in range(3):
        layer(torch.randn(1, 4, 8, 8)).sum().backward()
        optimizer.step()
    noise = torch.randn(64, 8, 20, 20)
    back = F.conv_transpose2d(noise, layer.feedback, padding=1, groups=groups)[..., 2:-2, 2:-2]
    assert back.std().item() == pytest.approx(0.7, rel=0.02)


def test_information_alignment_is_its_equation():
    weight, feedback = matrices()
    options = {"feedback_rate": 0.3, "amp": 1.5, "feedback_decay": 0.7, "null": 0.4, "noise_batch": 5}
    found, noise = updated("ia", weight, feedback, **options)
    expected = reference.information_alignment(feedback, weight, noise, 0.3, 1.5, 0.7, 0.4)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_every_rule_that_learns_or_redraws_has_a_slow_reference():
    assert set(UPDATES) == {name for name in RULES if biotorch.rules.get(name).has_update()}


def test_sham_copies_and_brsf_draws_again():
    weight, feedback = matrices()
    assert torch.equal(updated("sham", weight, feedback)[0], reference.copying(weight))
    found, _ = updated("brsf", weight, feedback)
    expected = reference.redrawing(weight.shape, torch.Generator().manual_seed(5))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def kernels(rule: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A convolution in groups, its W and B as matrices."""
    torch.manual_seed(2)
    layer = biotorch.convert(nn.Sequential(nn.Conv2d(4, 6, 3, groups=2)), rule, seed=1)[0].double()
    return layer, layer.weight.detach().flatten(1).clone(), layer.feedback.flatten(1).clone()


@pytest.mark.parametrize("rule", ["wm", "ia", "sa"])
def test_convolutions_learn_by_the_same_equations_at_one_position(rule):
    layer, weight, feedback = kernels(rule)
    kind = layer.rule
    (layer(torch.ones(1, 4, 5, 5).double()) * 0).sum().backward()  # a gradient of zeros
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    generator = _seeding.generator(_seeding.derive(layer.connections[0].seed, "feedback", 1))
    noise = lambda n: torch.randn(n, 18, generator=generator).double()  # noqa: E731
    if rule == "wm":
        rates = kind.mirror_rate, kind.mirror_decay, kind.growth_limit
        expected = reference.weight_mirror(feedback, weight, noise(kind.mirror_batch), *rates)
    elif rule == "ia":
        rates = kind.feedback_rate, kind.amp, kind.feedback_decay, kind.null
        expected = reference.information_alignment(feedback, weight, noise(kind.noise_batch), *rates)
    else:
        expected = reference.symmetric_alignment(feedback, weight, kind.feedback_rate)
    torch.testing.assert_close(layer.feedback.flatten(1), expected, rtol=1e-7, atol=1e-7)


def test_symmetric_alignment_is_its_equation():
    weight, feedback = matrices()
    found, _ = updated("sa", weight, feedback, feedback_rate=0.3)
    torch.testing.assert_close(found, reference.symmetric_alignment(feedback, weight, 0.3), **EXACT)


def test_kolen_pollack_descends_like_w():
    """Plain gradient descent with decay: the paper's own setting."""
    torch.manual_seed(0)
    model = biotorch.convert(mlp().double(), "kp", seed=1)
    layer, seen = model[2], []
    weight, feedback = layer.weight.detach().clone(), layer.feedback.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.05)
    for step in range(5):
        optimizer.zero_grad()
        F.cross_entropy(model(batch().double() + step), labels()).backward()
        seen.append(layer.weight.grad.clone())
        optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), reference.descent(weight, seen, 0.1, 0.05), **EXACT)
    torch.testing.assert_close(layer.feedback, reference.descent(feedback, seen, 0.1, 0.05), **EXACT)


# Direct Kolen-Pollack ----------------------------------------------------------------------------


def test_direct_kolen_pollack_is_its_equation():
    torch.manual_seed(0)
    model = biotorch.convert(mlp().double(), "dkp", seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.05)
    x = batch(5).double()
    hidden = model[1](model[0](x)).detach()
    feedback = model[2].feedback.clone()
    output = model(x)
    loss = F.cross_entropy(output, labels(5))
    (e,) = torch.autograd.grad(loss, output, retain_graph=True)
    loss.backward()
    optimizer.step()
    expected = reference.direct_kolen_pollack(feedback, e, hidden, 0.1, 0.005)
    torch.testing.assert_close(model[2].feedback, expected, **EXACT)


def convolutions() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(3, 4, 3, stride=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(36, 3),
    ).double()


@pytest.mark.parametrize("form", ["kernel", "dense"])
@pytest.mark.parametrize("clip", [False, True])
def test_a_convolution_s_b_learns_by_the_products_it_makes(form, clip):
    """<B e, x> is linear in B: its derivative by an entry is its value where that entry is one and the rest zero.

    A kernel takes the mean over the 64 positions of its input.
    """
    torch.manual_seed(0)
    x = torch.randn(4, 2, 8, 8, dtype=torch.float64)
    model = biotorch.convert(convolutions(), "dkp", seed=1, feedback=form, gradient_clip=clip, inputs=x)
    layer, before = model[2], model[2].feedback.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    loss_of(model(x)).backward()
    optimizer.step()
    moved = before - layer.feedback
    plain = biotorch.convert(convolutions(), "dfa", seed=1, feedback=form, inputs=x)
    plain.load_state_dict(model.state_dict(), strict=False)
    torch.manual_seed(0)
    plain.load_state_dict(convolutions_state(model, optimizer), strict=False)
    for entry in itertools.islice(itertools.product(*map(range, moved.shape)), 0, None, 7):
        plain[2].feedback.zero_()
        plain[2].feedback[entry] = 1
        hidden = plain[1](plain[0](x)).detach().requires_grad_()
        (heard,) = torch.autograd.grad(loss_of(plain[3:](plain[2](hidden))), hidden)
        positions = 64 if form == "kernel" else 1
        assert (heard * hidden).sum().item() / positions == pytest.approx(moved[entry].item(), rel=1e-9, abs=1e-12)


def convolutions_state(model, optimizer) -> dict[str, torch.Tensor]:
    """The weights before the step that has been made at rate 1."""
    return {name: (p + p.grad).detach() for name, p in model.named_parameters()}


def test_what_was_accumulated_is_used_once():
    models = [biotorch.convert(mlp().double(), "dkp", seed=1) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    x = batch(6).double()
    for model, parts in zip(models, (1, 3), strict=True):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            for part in x.chunk(parts):
                loss_of(model(part)).backward()
            optimizer.step()
    assert_close(models[1].state_dict(), models[0].state_dict(), rtol=1e-9, atol=1e-9)


def test_a_backward_whose_step_was_never_made_leaves_no_trace():
    models = [biotorch.convert(mlp(), "dkp", seed=1) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model, distracted in zip(models, (False, True), strict=True):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if distracted:
            loss_of(model(batch() * 100)).backward()  # as a step that a loss scaler skips
        optimizer.zero_grad()
        if distracted:
            torch.autograd.grad(loss_of(model(batch() * 7)), model[0].weight)  # as a metric asks
        loss_of(model(batch())).backward()
        optimizer.step()
    assert torch.equal(models[0][2].feedback, models[1][2].feedback)


@pytest.mark.parametrize("rule", [*UPDATES, "kp"])
def test_layers_that_share_w_update_their_b_once(rule):
    """As one layer alone does that has this W, B and gradient."""
    first, second, alone = (nn.Linear(6, 6) for _ in range(3))
    second.weight = first.weight
    alone.load_state_dict(first.state_dict())
    model = biotorch.convert(nn.Sequential(first, nn.Tanh(), second), rule, seed=1)
    biotorch.convert(nn.Sequential(alone), rule, seed=1)  # its name is that of the first, and so is its B
    assert torch.equal(alone.feedback, first.feedback)
    assert first.feedback is second.feedback
    for each in (model, alone):
        each(torch.zeros(2, 6)).sum().backward()
    for each in (first, alone):
        for parameter in {each.weight, *biotorch.feedback_parameters(nn.Sequential(each))}:
            parameter.grad = torch.full((6, 6), 0.5)
    torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.5).step()
    torch.optim.SGD(alone.parameters(), lr=0.1, weight_decay=0.5).step()
    assert torch.equal(alone.feedback, first.feedback)


def test_direct_layers_that_share_w_have_what_both_have_found():
    torch.manual_seed(0)
    first, again, head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
    again.weight = first.weight
    model = biotorch.convert(nn.Sequential(first, nn.Tanh(), again, nn.Tanh(), head), "dkp", seed=1).double()
    again.feedback = first.feedback  # double() has made two of them
    before = first.feedback.clone()
    x = batch().double()
    seen = [x, model[:2](x).detach()]
    output = model(x)
    (e,) = torch.autograd.grad(loss_of(output), output, retain_graph=True)
    loss_of(output).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    torch.testing.assert_close(first.feedback, before - 0.1 * sum(e.T @ each for each in seen), **EXACT)


# They find W -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["kp", "wm", "sa", "ia"])
def test_b_turns_to_w(rule):
    model = net(rule)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, weight_decay=0.3)
    before = biotorch.metrics.alignment_angles(model)
    for seed in range(900):
        optimizer.zero_grad()
        (loss_of(model(images(seed=seed % 3))) / 5).backward()
        optimizer.step()
    after = biotorch.metrics.alignment_angles(model)
    assert min(before.values()) > 60
    assert max(after.values()) < 45
    assert list(after) == LAYER_NAMES


# Where B starts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["fa", "kp", "wm", "sa", "ia"])
@pytest.mark.parametrize("angle", [0, 30.0, 90, 150])
def test_a_soft_start_has_its_angle_and_the_norm_of_the_draw(rule, angle):
    soft, hard = net(rule, feedback_angle=angle), net(rule)
    assert list(biotorch.metrics.alignment_angles(soft).values()) == pytest.approx([angle] * 4, abs=1e-3)
    for name in LAYER_NAMES:
        norm = hard.get_submodule(name).feedback.norm()
        torch.testing.assert_close(soft.get_submodule(name).feedback.norm(), norm, rtol=1e-5, atol=0)


def test_a_soft_start_leaves_the_draw_where_w_is_zero():
    layers = [nn.Linear(6, 6) for _ in range(2)]
    for layer in layers:
        nn.init.zeros_(layer.weight)
    soft, hard = biotorch.convert(layers[0], "fa", feedback_angle=10, seed=1), biotorch.convert(layers[1], "fa", seed=1)
    assert torch.equal(soft.feedback, hard.feedback)


def test_b_may_start_at_w():
    model = net("kp", feedback_init="weight")
    assert max(biotorch.metrics.alignment_angles(model).values()) == 0
    assert model.head.feedback.data_ptr() != model.head.weight.data_ptr()


@pytest.mark.parametrize(
    ("rule", "options", "told"),
    [
        ("fa", {"feedback_angle": 181}, "0 to 180"),
        ("fa", {"feedback_angle": True}, "0 to 180"),
        ("kp", {"feedback_angle": 10, "feedback_init": "weight"}, "leave out feedback_angle"),
        ("wm", {"mirror_rate": 0}, "mirror_rate is a number above 0"),
        ("wm", {"mirror_decay": 1.5}, "mirror_decay is a number above 0 and at most 1, not 1.5"),
        ("wm", {"mirror_batch": 1.0}, "mirror_batch is a whole number above 0, not 1.0"),
        ("ia", {"null": -1}, "null is a number above 0"),
        ("ia", {"noise_batch": 1.5}, "whole number"),
        ("sa", {"feedback_rate": 2}, "at most 1"),
        ("sa", {"feedback_rate": float("nan")}, "above 0"),
        ("dkp", {"feedback": "shared"}, "a B for each layer"),
        ("dkp", {"points": ["layer1"]}, "a B for each layer"),
        ("wm", {"mirror_rate": "fast"}, "mirror_rate is a number above 0, not 'fast'"),
        ("sham", {"feedback_angle": 60}, "unknown option of rule 'sham' 'feedback_angle'"),
    ],
)
def test_wrong_options_are_told(rule, options, told):
    with pytest.raises(ValueError, match=told):
        biotorch.rules.make(rule, **options)


# No cost where unused ----------------------------------------------------------------------------


def test_updates_of_rules_that_do_not_follow_them_are_not_looked_for():
    for rule in RULES:
        model, kind = net(rule), biotorch.rules.get(rule)
        for connection in biotorch.layers.connections(model).values():
            assert (connection.follower is not None) == kind.has_update()
            assert (connection.learner is not None) == kind.learns
