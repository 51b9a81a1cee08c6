"""Converting a converted network again, whole or in part, and the hooks that cut shortcuts."""

from __future__ import annotations

import pytest
from networks import RULES, batch, gradients, labels, mlp, same, state
from torch import nn

import biotorch
from biotorch.conversion import forms
from biotorch.layers import FeedbackLayer

pytestmark = pytest.mark.usefixtures("targets")


def rules(model: nn.Module) -> dict[str, str]:
    return {name: m.rule.name for name, m in model.named_modules() if isinstance(m, FeedbackLayer)}


# Converting again --------------------------------------------------------------------------------


@pytest.mark.parametrize("second", RULES)
@pytest.mark.parametrize("first", RULES)
def test_converting_again_equals_converting_once(first, second):
    once, twice = mlp(), mlp()
    twice.load_state_dict(once.state_dict())
    biotorch.convert(twice, first, constrain_weights=True)
    biotorch.convert(twice, second, seed=1)
    biotorch.convert(once, second, seed=1)
    # Buffers of the first rule (B, the norm that constrain_weights keeps) are gone.
    assert same(state(twice), state(once))
    assert rules(twice) == rules(once)
    assert same(gradients(twice, batch(), labels()), gradients(once, batch(), labels()))


def test_a_second_conversion_of_the_last_layer_leaves_the_others_trainable():
    # "The last layer stays backpropagation", said afterwards: it is still the output layer.
    model = biotorch.convert(mlp(), "dfa")
    biotorch.convert(model, {"4": "backpropagation"})
    assert rules(model) == {"0": "dfa", "2": "dfa", "4": "backpropagation"}
    assert len(gradients(model, batch(), labels())) == 6


def test_a_second_conversion_of_a_hidden_layer_finds_the_output_layer():
    # The output layer is the network's last feedback layer, not the last one of this call.
    model = biotorch.convert(mlp(), "fa")
    biotorch.convert(model, {"0": "dfa"})
    assert model[0].feedback.shape == (3, 6)
    assert model[4].output is not None


# Shortcuts ---------------------------------------------------------------------------------------


def cuts(model: nn.Module) -> int:
    return sum(isinstance(h, forms.CutShortcut) for m in model.modules() for h in m._forward_pre_hooks.values())


def test_cutting_installs_one_hook_per_block_and_converting_again_removes_it():
    model = biotorch.models.build("resnet20")
    assert cuts(biotorch.convert(model, "dfa")) == 0
    assert cuts(biotorch.convert(model, "dfa", shortcuts="cut")) == 9
    assert cuts(biotorch.convert(model, "dfa", shortcuts="cut")) == 9
    assert cuts(biotorch.convert(model, "dfa", shortcuts="keep")) == 0
    biotorch.convert(model, "dfa", shortcuts="cut")
    assert cuts(biotorch.convert(model, "fa")) == 0


def test_blocks_of_an_own_network_are_cut_by_pattern():
    class Residual(nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    model = nn.Sequential(nn.Linear(6, 6), Residual(nn.Linear(6, 6), nn.ReLU()), Residual(nn.Linear(6, 6)), nn.Tanh())
    assert cuts(biotorch.convert(model, "dfa", shortcuts="cut", blocks=["1"])) == 1
    assert cuts(biotorch.convert(model, "dfa", shortcuts="cut", blocks=["[12]"])) == 2


def test_a_partial_second_conversion_keeps_the_cuts_of_the_direct_layers():
    model = biotorch.convert(biotorch.models.build("resnet20"), "dfa", shortcuts="cut")
    biotorch.convert(model, {"fc": "backpropagation"})
    assert cuts(model) == 9
