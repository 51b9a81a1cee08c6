"""The options `bits`, `noise` and `dead`: B as analog hardware would hold and read it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import checkpoint

import biotorch
from biotorch import ConversionError, _seeding, metrics, rules
from biotorch.kernel.imperfection import live_entries, quantised, read_noise
from biotorch.layers import connections
from biotorch.testing import CHECKS, check_compiling, check_rule

#: Feedback rules with a B, and direct rules; the others refuse the options.
FEEDBACK = ("fa", "usf", "brsf", "frsf", "kp", "wm", "ia", "sa", "sham")
DIRECT = ("dfa", "dkp", "sdfa", "drtp")
ALL = {"bits": 3, "noise": 0.5, "dead": 0.25}


def carried(layer: nn.Module) -> torch.Tensor:
    """B as the next backward pass reads it: what each unit error alone hands to the layer's input."""
    rows, columns = layer.weight.shape
    x = torch.zeros(rows, columns, dtype=layer.weight.dtype, requires_grad=True)
    return torch.autograd.grad(layer(x), x, torch.eye(rows, dtype=layer.weight.dtype))[0]


def linear(rule: str, shape: tuple[int, int] = (7, 5), **options) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.Linear(*reversed(shape)).double()
    nn.init.normal_(layer.bias)
    return biotorch.convert(layer, rule, seed=2, **options)


def test_bits_round_to_evenly_spaced_levels_with_zero_among_them():
    b = torch.tensor([[-1.0, -0.4, 0.0], [0.2, 0.6, 0.9]], dtype=torch.float64)
    by_hand = {
        1: [[-0.62, -0.62, 0.0], [0.62, 0.62, 0.62]],  # the mean of |B| where it is not zero
        2: [[-1, 0, 0], [0, 1, 1]],
        3: [[-1, -1 / 3, 0], [1 / 3, 2 / 3, 1]],
        4: [[-1, -3 / 7, 0], [1 / 7, 4 / 7, 6 / 7]],
    }
    for bits, levels in by_hand.items():
        torch.testing.assert_close(quantised(b, bits), torch.tensor(levels, dtype=torch.float64))
    assert not quantised(torch.zeros(2, 3), 4).any()
    assert not quantised(torch.zeros(2, 3), 1).any()
    torch.testing.assert_close(quantised(b, 16), b, rtol=0, atol=0.5 / (2**15 - 1))


@pytest.mark.parametrize("dead", [0.1, 0.25, 0.5, 1.0])
def test_the_dead_share_is_exact(dead):
    for shape in ((3, 3), (40, 50)):
        live = live_entries(torch.zeros(shape), dead, torch.Generator())
        assert (live == 0).sum() == round(dead * live.numel())
        assert ((live == 0) | (live == 1)).all()


@pytest.mark.parametrize("rule", FEEDBACK)
def test_the_backward_pass_reads_b_quantised_without_dead_entries_times_noise(rule):
    layer, perfect = linear(rule, **ALL), linear(rule)
    torch.testing.assert_close(carried(perfect), perfect.effective_feedback)
    assert torch.equal(perfect.weight, layer.weight)
    seed = layer.noisy_feedback[0].item()
    for use in range(2):
        generator = _seeding.generator(_seeding.derive(seed, "noise", use))
        factors = torch.empty(7, 5).normal_(1, 0.5, generator=generator).double()
        expected = quantised(perfect.effective_feedback, 3) * layer.live_feedback * factors
        torch.testing.assert_close(carried(layer), expected)
    assert (layer.live_feedback == 0).sum() == round(0.25 * 35)


@pytest.mark.parametrize("rule", DIRECT)
def test_direct_rules_read_b_in_the_same_way(rule):
    model, perfect = (
        biotorch.convert(nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3)).double(), rule, seed=2, **options)
        for options in (ALL, {})
    )
    model.load_state_dict(perfect.state_dict(), strict=False)
    got = []
    for each in (model, perfect):
        x = torch.ones(3, 5, dtype=torch.float64, requires_grad=True)
        with biotorch.targets(torch.eye(3, dtype=torch.float64), scale=1.0):
            y = each(x)
        got.append(torch.autograd.grad(y, x, torch.eye(3, dtype=torch.float64))[0])
    sign = -1 if rule == "drtp" else 1
    torch.testing.assert_close(got[1], sign * perfect[0].feedback)
    factors = read_noise(perfect[0].feedback, torch.tensor([model[0].noisy_feedback[0], 0]), 0.5)
    torch.testing.assert_close(got[0], sign * quantised(perfect[0].feedback, 3) * model[0].live_feedback * factors)


def test_the_noise_has_mean_one_and_its_deviation_and_is_fresh_at_each_use():
    layer = linear("fa", (300, 200), noise=0.5)
    first, second = (carried(layer) / layer.feedback for _ in range(2))
    for factors in (first, second):
        assert factors.mean().item() == pytest.approx(1, abs=0.01)  # standard error .002
        assert factors.std().item() == pytest.approx(0.5, abs=0.01)
    assert abs(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]) < 0.02
    torch.manual_seed(5)
    before = torch.get_rng_state()
    carried(layer)
    assert torch.equal(torch.get_rng_state(), before)


def test_only_the_error_that_a_layer_hands_on_is_distorted():
    x = torch.randn(4, 5, dtype=torch.float64)
    found = []
    for options in (ALL, {}):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
        biotorch.convert(model, "kp", seed=2, **options)
        y = model(x)
        y.square().sum().backward()
        found.append((y, {name: p.grad for name, p in model.named_parameters()}))
    (y, imperfect), (expected, perfect) = found
    assert torch.equal(y, expected)
    for name, gradient in imperfect.items():  # also of B, whose dead entries learn
        assert torch.equal(gradient, perfect[name]) == (name.partition(".")[0] == "2"), name


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 6, 3, groups=2, padding="same"), (2, 4, 5, 5)),
        (nn.ConvTranspose1d(3, 4, 3), (2, 3, 6)),
        (nn.Linear(4, 3), (2, 5, 4)),
        (nn.LSTM(3, 4, bidirectional=True), (5, 2, 3)),
        (nn.GRUCell(3, 4), (2, 3)),
        (nn.MultiheadAttention(4, 2, kdim=4, vdim=4), (3, 2, 4)),
    ],
    ids=lambda each: type(each).__name__,
)
def test_every_layer_type_reads_its_b_so(layer, shape):
    biotorch.convert(layer, "fa", seed=1, dead=1.0)
    x = torch.randn(shape, requires_grad=True)
    y = layer(x, x, x) if isinstance(layer, nn.MultiheadAttention) else layer(x)
    (y[0] if isinstance(y, tuple) else y).square().sum().backward()
    assert not x.grad.any()  # B reads as zero, and nothing else carries an error
    assert len([name for name, _ in layer.named_buffers() if "live" in name]) == len(layer.connections)
    assert any(p.grad.any() for p in layer.parameters())


def test_layers_that_share_a_matrix_read_one_distorted_matrix():
    layers = [nn.Linear(9, 8), nn.Linear(8, 8), nn.Linear(8, 4)]
    model = biotorch.convert(nn.Sequential(*layers), "dfa", feedback="shared", seed=1, **ALL)
    inputs, head = [], model[2]
    for layer in layers:
        layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    y = model(torch.randn(4, 9, requires_grad=True))
    carried = torch.autograd.grad(y, inputs, torch.eye(4))
    factors = read_noise(head.shared_feedback, head.shared_noisy_feedback - torch.tensor([0, 1]), 0.5)
    expected = quantised(head.shared_feedback, 3) * head.shared_live_feedback * factors
    for each, connection in zip(carried, connections(model).values(), strict=True):
        torch.testing.assert_close(each, expected[:, : connection.columns.size] * connection.columns.scale)
    different = {"0": rules.make("dfa", feedback="shared", dead=0.5), "*": rules.make("dfa", feedback="shared")}
    with pytest.raises(ConversionError, match=r"give them one dead, not 0\.5 and 0\.0"):
        biotorch.convert(nn.Sequential(nn.Linear(9, 8), nn.Linear(8, 4)), different)
    biotorch.convert(model, "fa")
    assert not [name for name, _ in model.named_buffers() if "shared" in name]


def test_numbers_of_numpy_are_numbers():
    rule = rules.make("fa", bits=np.int64(3), noise=np.float32(0.5), dead=np.float64(0.25))
    assert rule == rules.make("fa", **ALL)
    assert [type(each) for each in (rule.bits, rule.noise, rule.dead)] == [int, float, float]
    with pytest.raises(ValueError, match="bits is a whole number"):
        rules.make("fa", bits=np.float32(3))


def test_a_summary_shows_how_b_is_read():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    found = biotorch.summary(biotorch.convert(model, {"0": rules.make("fa", **ALL), "1": "fa"}))
    assert [row.note for row in found.rows] == ["bits 3, noise 0.5, dead 0.25", ""]


def test_a_rule_for_each_layer_has_its_own_imperfection():
    model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3))
    biotorch.convert(model, {"0": rules.make("fa", dead=1.0), "*": "fa"})
    assert not carried(model[0]).any()
    torch.testing.assert_close(carried(model[1]), model[1].feedback)
    assert [name for name, _ in model.named_buffers()] == ["0.feedback", "0.live_feedback", "1.feedback"]
    biotorch.convert(model, {"0": "fa", "1": "backpropagation"}, dead=1.0)  # the layers with a B get the option
    assert not carried(model[0]).any()
    torch.testing.assert_close(carried(model[1]), model[1].weight)


def test_a_rule_of_a_user_has_the_options_without_a_line(monkeypatch):
    monkeypatch.setattr(rules.registry, "_REGISTRY", dict(rules.registry._REGISTRY))

    @rules.register("halved", transports="weights")
    class Halved(rules.FeedbackRule):
        def feedback(self, weight, state):
            return weight / 2

    layer = linear("halved", dead=0.4, bits=2)
    torch.testing.assert_close(carried(layer), quantised(layer.weight / 2, 2) * layer.live_feedback)
    with pytest.raises(TypeError, match=r"Louder has an option noise, but .* give it another name"):

        @rules.register("louder", transports="weights")
        @dataclasses.dataclass(frozen=True, kw_only=True)
        class Louder(Halved):
            noise: int = 3


def test_the_alignment_angle_is_to_b_as_it_is_read_without_noise():
    layer = linear("sham", bits=1, dead=0.2, noise=3.0)
    expected = metrics.angle(layer.weight, layer.weight.sign() * layer.live_feedback)
    assert 30 < expected < 60
    assert metrics.alignment_angles(layer) == {"": pytest.approx(expected)}
    assert layer.noisy_feedback[1] == 0  # measuring is no use


def test_a_network_of_the_meta_device_takes_dead_entries_and_noise_from_a_saved_state():
    saved = linear("fa", **ALL)
    carried(saved)
    with torch.device("meta"):
        layer = biotorch.convert(nn.Linear(5, 7, dtype=torch.float64), "fa", seed=9, **ALL)
    layer.to_empty(device="cpu")
    with pytest.raises(RuntimeError, match=r"its feedback, live_feedback has no values"):
        carried(layer)
    layer.load_state_dict(saved.state_dict())
    assert torch.equal(carried(layer), carried(saved))


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("fa", {"bits": 0}, "bits is a whole number above 0 and at most 16, not 0"),
        ("dfa", {"bits": 4.0}, "bits is a whole number above 0 and at most 16, not 4.0"),
        ("kp", {"noise": -0.1}, "noise is a number of at least 0, not -0.1"),
        ("usf", {"dead": 1.1}, "dead is a number of at least 0 and at most 1, not 1.1"),
        ("backpropagation", {"bits": 4}, "backpropagation has no feedback weights B, so it takes none"),
        ("shallow", {"dead": 0.1}, "shallow has no feedback weights B, so it takes none"),
    ],
)
def test_other_values_and_rules_without_b_are_refused(rule, options, message):
    with pytest.raises(ValueError, match=message):
        rules.make(rule, **options)


FAST = ("check_repeating", "check_copies", "check_resuming", "check_transport")


@pytest.mark.parametrize("check", [each for each in CHECKS if each.__name__ in FAST], ids=lambda each: each.__name__)
@pytest.mark.parametrize("rule", ["brsf", "dfa"])
def test_the_promises_of_every_rule_hold(rule, check):
    check(rule, **ALL)


def test_a_compiled_graph_draws_the_same_noise():
    check_compiling("fa", **ALL)


def test_a_recomputed_forward_keeps_the_noise_of_its_pass():
    x = torch.ones(7, 5, dtype=torch.float64, requires_grad=True)
    layer, error = linear("fa", **ALL), torch.eye(7, dtype=torch.float64)
    y = checkpoint.checkpoint(layer, x, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(y, x, error)[0], carried(linear("fa", **ALL)))


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["fa", "kp", "dfa"])
def test_all_promises_of_every_rule_hold(rule):
    check_rule(rule, bits=8, noise=0.1, dead=0.1)
