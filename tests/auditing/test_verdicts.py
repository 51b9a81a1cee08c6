"""The proof: `audit` calls weight transport what is weight transport, and nothing else."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torchvision
from networks import RULES, batch, images, mlp
from reference import TRANSPORTS
from torch import nn

import biotorch
from biotorch import AuditError
from biotorch.rules import FeedbackRule
from biotorch.rules import registry as base


def le_net() -> nn.Module:
    return biotorch.models.build("le_net_cifar")


def resnet20() -> nn.Module:
    return biotorch.models.build("resnet20")


def resnet18() -> nn.Module:
    return torchvision.models.resnet18(num_classes=5)


NETWORKS = {"mlp": (mlp, batch()), "le_net": (le_net, images()), "resnet20": (resnet20, images())}
LEAK = {"weights": 1.0, "signs": 0.5, "nothing": 0.0}


@pytest.fixture
def unregister():
    """Rules that a test registers disappear with it."""
    rules, aliases = dict(base._REGISTRY), dict(base._ALIASES)
    yield
    for registry, before in ((base._REGISTRY, rules), (base._ALIASES, aliases)):
        registry.clear()
        registry.update(before)


# Every rule is what it says ----------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("rule", RULES)
def test_each_rule_transports_what_it_declares(rule, network):
    build, inputs = NETWORKS[network]
    model = biotorch.convert(build(), rule)
    result = biotorch.audit(model, inputs)
    assert set(result.layers.values()) == {TRANSPORTS[rule]} == {biotorch.rules.get(rule).transports}
    assert result.leak == LEAK[TRANSPORTS[rule]]
    assert len(result.layers) == len(biotorch.summary(model).rows) - sum(
        isinstance(m, nn.BatchNorm2d) for m in model.modules()
    )


@pytest.mark.parametrize(
    "rule", ["dfa", "fa", *(pytest.param(rule, marks=pytest.mark.slow) for rule in ("backpropagation", "frsf"))]
)
def test_a_torchvision_resnet_is_audited_like_our_own(rule):
    model = biotorch.convert(resnet18(), rule)
    result = biotorch.audit(model, images())
    assert set(result.layers.values()) == {TRANSPORTS[rule]}
    assert len(result.layers) == 21


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_that_was_never_converted_transports_all_its_weights(network):
    build, inputs = NETWORKS[network]
    result = biotorch.audit(build(), inputs)
    assert set(result.layers.values()) == {"weights"}
    assert result.leak == 1.0


@pytest.mark.parametrize("options", [{"gradient_clip": True}, {"constrain_weights": True}, {"feedback_init": "weight"}])
def test_options_do_not_change_the_verdict(options):
    assert biotorch.audit(biotorch.convert(mlp(), "fa", **options), batch()).leak == 0.0


@pytest.mark.parametrize("training", [True, False])
def test_the_verdict_holds_in_either_mode_and_with_dropout(training):
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3))
    model.train(training)
    assert biotorch.audit(biotorch.convert(model, "dfa"), batch()).leak == 0.0
    assert biotorch.audit(biotorch.convert(model, "backpropagation"), batch()).leak == 1.0


def test_verdicts_are_per_layer_where_rules_are_mixed():
    model = biotorch.convert(mlp(), {"0": "fa", "2": "usf", "4": "backpropagation"})
    result = biotorch.audit(model, batch())
    assert result.layers == {"0": "nothing", "2": "signs", "4": "weights"}
    assert result.leak == 0.5


# What no flag can hide ---------------------------------------------------------------------------


def test_a_kernel_whose_feedback_is_w_is_weight_transport(unregister):
    @base.register("test_sham", transports="nothing")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Sham(FeedbackRule):
        def initial_feedback(self, weight, blank, generator):
            return weight.detach().clone()

        def feedback(self, weight, state):
            return weight

    result = biotorch.audit(biotorch.convert(mlp(), "test_sham"), batch())
    assert result.leak == 1.0


def test_a_rule_that_copies_w_into_b_after_each_update_is_weight_transport(unregister):
    # In one backward pass it is exactly FA: the transport happens between the passes.
    @base.register("test_copying", transports="nothing")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Copying(biotorch.rules.get("fa")):
        def after_update(self, update):
            update.feedback.copy_(update.weight)

    result = biotorch.audit(biotorch.convert(mlp(), "test_copying"), batch())
    assert set(result.layers.values()) == {"weights"}


def test_a_rule_that_copies_w_now_and_then_is_weight_transport(unregister):
    @base.register("test_syncing", transports="nothing")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Syncing(biotorch.rules.get("fa")):
        every: int = 1

        def after_update(self, update):
            if update.number % self.every == 0:
                update.feedback.copy_(update.weight)

    for every in (1, 7, 100):
        result = biotorch.audit(biotorch.convert(mlp(), "test_syncing", every=every), batch())
        assert set(result.layers.values()) == {"weights"}, every


def test_a_rule_that_copies_signs_after_each_update_transports_signs(unregister):
    @base.register("test_copying_signs", transports="nothing")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class CopyingSigns(biotorch.rules.get("fa")):
        def after_update(self, update):
            update.feedback.copy_(update.feedback.abs() * update.weight.sign())

    result = biotorch.audit(biotorch.convert(mlp(), "test_copying_signs"), batch())
    assert set(result.layers.values()) == {"signs"}


def test_feedback_that_shares_memory_with_w_is_weight_transport():
    model = biotorch.convert(mlp(), "fa")
    model[2].feedback = model[2].weight.detach()
    assert biotorch.audit(model, batch()).layers == {"0": "nothing", "2": "weights", "4": "nothing"}


def test_a_hook_that_copies_w_into_b_at_each_forward_is_weight_transport():
    model = biotorch.convert(mlp(), "fa")

    def copy_weight(layer, args):
        layer.feedback.copy_(layer.weight.detach())

    model[2].register_forward_pre_hook(copy_weight)
    assert biotorch.audit(model, batch()).layers == {"0": "nothing", "2": "weights", "4": "nothing"}


def test_true_gradients_are_weight_transport():
    model = biotorch.convert(mlp(), "fa")
    with biotorch.true_gradients(model):
        assert biotorch.audit(model, batch()).leak == 1.0


@pytest.mark.parametrize("zeroed", ["0", "2", "4"])
def test_weights_that_start_at_zero_hide_nothing(zeroed):
    # A zero-initialised output layer is common; noise of its norm is zero again and would change nothing.
    model = mlp()
    nn.init.zeros_(model.get_submodule(zeroed).weight)
    nn.init.ones_(model.get_submodule(zeroed).bias)  # keeps the units behind it alive
    assert set(biotorch.audit(model, batch()).layers.values()) == {"weights"}
    assert set(biotorch.audit(biotorch.convert(model, "usf"), batch()).layers.values()) == {"signs"}
    assert biotorch.audit(biotorch.convert(model, "fa"), batch()).leak == 0.0


def test_a_layer_that_no_gradient_reaches_is_not_called_clean():
    # Residual branches that start at zero (BN scale 0): nothing passes them in this state, but
    # plain backpropagation it is. To refuse to judge is right as well.
    model = resnet20()
    for module in model.modules():
        if hasattr(module, "bn2"):
            nn.init.zeros_(module.bn2.weight)
    try:
        verdicts = set(biotorch.audit(model, images()).layers.values())
    except AuditError:
        return
    assert verdicts == {"weights"}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "normalise",
    [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.orthogonal],
    ids=["weight_norm", "parametrized weight_norm", "orthogonal"],
)
def test_a_computed_weight_is_judged_like_any_other(normalise):
    model = mlp()
    normalise(model[2])
    assert biotorch.audit(model, batch()).layers == {"0": "weights", "2": "weights", "4": "weights"}
    biotorch.convert(model, "fa")
    assert biotorch.audit(model, batch()).layers == {"0": "nothing", "2": "nothing", "4": "nothing"}
    biotorch.convert(model, {"2": "backpropagation"})
    assert biotorch.audit(model, batch()).layers == {"0": "nothing", "2": "weights", "4": "nothing"}


def test_attention_and_recurrence_left_on_backpropagation_transport_weights():
    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            self.inp, self.rnn = nn.Linear(6, 8), nn.LSTM(8, 9, batch_first=True, proj_size=8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True)
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            x, _ = self.rnn(self.inp(x))
            return self.head(self.attention(x, x, x)[0])

    model = Sequence()
    with pytest.warns(biotorch.ConversionWarning):
        biotorch.convert(model, "fa")
    layers = biotorch.audit(model, torch.randn(2, 5, 6)).layers
    assert layers["inp"] == layers["head"] == "nothing"
    assert layers["rnn"] == layers["attention"] == "weights"


def test_a_first_layer_on_integer_images_does_not_count_as_clean():
    class Images(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp()

        def forward(self, x):
            return self.body(x.float() / 255)

    result = biotorch.audit(Images(), (batch() * 50).abs().to(torch.uint8))
    assert result.leak == 1.0
    assert [verdict.upstream for verdict in result.layers.values()] == [False, True, True]


def test_a_layer_that_no_gradient_reaches_is_not_judged():
    model = mlp()
    nn.init.constant_(model[2].bias, -1e9)  # dead units behind it
    with pytest.raises(AuditError, match="no gradient reaches 0, 2"):
        biotorch.audit(model, batch())
