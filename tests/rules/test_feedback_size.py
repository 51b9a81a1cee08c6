"""The options `feedback_scale` and `feedback_density`: how large B is, and how many of its entries are not zero."""

from __future__ import annotations

import pytest
import torch
from networks import TRAINING, same, state
from rule_names import RULES
from torch import nn

import biotorch
from biotorch import ConversionError, rules
from biotorch.layers import connections
from biotorch.rules import RandomFeedback, initial
from biotorch.testing import LAYER_NAMES, check_resuming, images, loss_of, net
from biotorch.testing.checks import optimizer_of, told_gradients, train

#: Rules whose B is random, or starts so.
RANDOM = [name for name in RULES if issubclass(rules.get(name), RandomFeedback)]
every_random_rule = pytest.mark.parametrize("rule", RANDOM)


def wide(rule: str, **options) -> nn.Sequential:
    """40 -> 50 -> 10, for shares that can be counted."""
    torch.manual_seed(1)
    return biotorch.convert(nn.Sequential(nn.Linear(40, 50), nn.Tanh(), nn.Linear(50, 10)), rule, seed=4, **options)


def test_these_rules_draw_b_at_random():
    assert set(RANDOM) == set(TRAINING) - {"backpropagation", "sham", "usf"}


@every_random_rule
def test_b_is_that_of_the_defaults_times_the_scale_where_the_density_leaves_it(rule):
    full, sized = net(rule), net(rule, feedback_scale=3, feedback_density=0.4)
    assert same(state(net(rule, feedback_scale=1, feedback_density=1)), state(full))
    for name in LAYER_NAMES:
        b, whole = sized.get_submodule(name).feedback, full.get_submodule(name).feedback
        kept = b != 0
        assert torch.equal(b, whole * 3 * kept)
        counts = kept.sum(0)  # by place of the input: of n errors .4 n, up or down
        assert set(counts.unique().tolist()) <= {int(0.4 * len(b)), int(0.4 * len(b)) + 1}


@every_random_rule
def test_a_density_of_one_in_ten_gives_every_place_one_error_of_ten(rule):
    b = wide(rule, feedback_density=0.1)[-1].feedback
    assert ((b != 0).sum(0) == 1).all()
    assert len((b != 0).int().argmax(0).unique()) > 5  # not the same one


@pytest.mark.parametrize("density", [0.01, 0.37, 0.999])
def test_the_share_holds_also_where_it_is_no_whole_number(density):
    b = wide("fa", feedback_density=density)[0].feedback  # (50, 40)
    assert (b != 0).float().mean().item() == pytest.approx(density, abs=0.01)


@pytest.mark.parametrize(("rule", "magnitude"), [("fa", lambda w: w), ("frsf", torch.abs)])
def test_a_b_that_starts_at_w_has_scale_and_density_too(rule, magnitude):
    model = net(rule, feedback_init="weight", feedback_scale=0.5, feedback_density=0.5)
    for name in LAYER_NAMES:
        layer = model.get_submodule(name)
        kept = layer.feedback != 0
        assert 0.3 < kept.float().mean() < 0.7
        assert torch.equal(layer.feedback, magnitude(layer.weight) * 0.5 * kept)


def test_the_scale_keeps_the_angle_of_a_soft_start():
    model, own = net("fa", feedback_angle=30, feedback_scale=2), net("fa")
    assert list(biotorch.metrics.alignment_angles(model).values()) == pytest.approx([30] * 4, abs=1e-3)
    torch.testing.assert_close(model.head.feedback.norm(), 2 * own.head.feedback.norm())


@pytest.mark.parametrize("form", [{"feedback": "dense", "inputs": images(1)}, {"feedback": "shared"}])
def test_every_form_of_a_direct_b_has_scale_and_density(form):
    full, sized = net("dfa", **form), net("dfa", feedback_scale=3, feedback_density=1 / 3, **form)
    for name, connection in connections(sized).items():
        b, whole = connection.feedback, connections(full)[name].feedback
        assert ((b != 0).sum(0) == 1).all(), name  # of three outputs
        torch.testing.assert_close(b, whole * 3 * (b != 0))


@pytest.mark.parametrize(
    ("rule", "options", "factors"),
    [
        ("fa", {}, (8, 4, 2, 1)),  # once for every layer that the error has passed
        ("frsf", {}, (8, 4, 2, 1)),
        ("dfa", {}, (2, 2, 2, 1)),
        ("dfa", {"feedback": "shared"}, (2, 2, 2, 1)),
        ("dfa", {"feedback": "dense", "inputs": images(1)}, (2, 2, 2, 1)),
    ],
)
def test_gradients_grow_with_the_scale(rule, options, factors):
    found = [told_gradients(net(rule, feedback_scale=scale, **options), images()) for scale in (1, 2)]
    for name, factor in zip(LAYER_NAMES, factors, strict=True):
        plain, scaled = (each[f"{name}.weight"] for each in found)
        assert plain.any()
        torch.testing.assert_close(scaled, factor * plain, rtol=1e-5, atol=1e-6)


def test_layers_of_one_matrix_have_one_density():
    mixed = {"0": rules.make("dfa", feedback="shared", feedback_density=0.5), "*": rules.make("dfa", feedback="shared")}
    with pytest.raises(ConversionError, match=r"give them one feedback_density, not 0\.5 and 1\.0"):
        biotorch.convert(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)), mixed)
    mixed["*"] = rules.make("dfa", feedback="shared", feedback_density=0.5, feedback_scale=4)
    model = biotorch.convert(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)), mixed)  # each layer has its own scale
    assert model[1].connections[0].columns.scale == pytest.approx(4 * (2 / 8) ** 0.5)


def test_brsf_draws_again_at_its_scale_and_keeps_its_zeros():
    model, dense = net("brsf", feedback_scale=3, feedback_density=0.4), net("brsf")
    before = model.head.feedback.clone()
    for each in (model, dense):
        train(each, optimizer_of(each), range(2))
    kept = before != 0
    assert torch.equal(model.head.feedback != 0, kept)
    assert not torch.equal(model.head.feedback, before)
    torch.testing.assert_close(model.head.feedback, dense.head.feedback * 3 * kept)


def test_brsf_loses_no_entry_to_rounding():
    layer = biotorch.convert(nn.Linear(300, 300), "brsf", feedback_scale=1e-4, feedback_density=0.5).half()
    kept = layer.feedback != 0
    for _ in range(3):
        layer.weight.grad = torch.zeros_like(layer.weight)
        biotorch.updated(layer)
        assert torch.equal(layer.feedback != 0, kept)


@pytest.mark.parametrize("rule", ["kp", "wm", "sa", "ia", "dkp"])
def test_a_b_that_learns_fills_in(rule):
    model = net(rule, feedback_density=0.4)
    train(model, optimizer_of(model), range(2))
    loss_of(model(images()))
    assert (model.head.feedback != 0).float().mean() > 0.8  # not where the unit in front is silent


@pytest.mark.parametrize("rule", ["fa", "dfa", "brsf"])
def test_a_sparse_b_audits_and_resumes_like_any(rule):
    options = {"feedback_scale": 2.0, "feedback_density": 0.4}
    check_resuming(rule, **options)
    found = biotorch.audit(net(rule, **options), images())
    assert {str(verdict) for verdict in found.layers.values()} <= {rules.get(rule).transports, "nothing"}


@pytest.mark.parametrize(
    ("rule", "options", "told"),
    [
        ("fa", {"feedback_scale": 0}, "feedback_scale is a number above 0, not 0"),
        ("dfa", {"feedback_scale": float("inf")}, "feedback_scale is a number above 0"),
        ("frsf", {"feedback_scale": True}, "feedback_scale is a number above 0"),
        ("dfa", {"feedback_density": 0.0}, "feedback_density is a number above 0 and at most 1, not 0.0"),
        ("kp", {"feedback_density": 1.5}, "feedback_density is a number above 0 and at most 1"),
        (
            "fa",
            {"feedback_angle": 60, "feedback_density": 0.5},
            "would change the feedback_angle: leave one of them out",
        ),
        *((rule, {"feedback_scale": 2.0}, "unknown option") for rule in sorted(set(RULES) - set(RANDOM))),
        *((rule, {"feedback_density": 0.5}, "unknown option") for rule in sorted(set(RULES) - set(RANDOM))),
    ],
)
def test_wrong_values_are_refused(rule, options, told):
    with pytest.raises(ConversionError, match=told):
        biotorch.convert(nn.Linear(3, 2), rule, **options)


def test_a_user_s_direct_rule_has_both_options():
    """The layer applies them, so a rule that only draws needs no code for them."""

    class Plain(rules.DirectRule):
        name, transports = "plain", "nothing"

        def initial_feedback(self, weight, blank, generator):
            return initial.draw(blank, "normal", generator)

    full, sized = (biotorch.convert(nn.Linear(6, 5), rule, seed=1) for rule in (Plain(), Plain(feedback_scale=2)))
    assert torch.equal(sized.feedback, full.feedback * 2)
