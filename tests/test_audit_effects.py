"""Beside the verdicts of `audit`: shortcuts, what it leaves untouched, and the same proof by hand."""

from __future__ import annotations

import pytest
import torch
import torchvision
from networks import batch, images, labels, mlp, same, state
from torch import nn
from torch.nn import functional as F

import biotorch
from biotorch.layers import FeedbackLayer

FIRST_OF_BLOCKS = {f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in range(3)}


# Shortcuts ---------------------------------------------------------------------------------------


def test_a_direct_rule_with_kept_shortcuts_names_each_of_them_and_its_share():
    result = biotorch.audit(biotorch.convert(biotorch.models.build("resnet20"), "dfa"), images())
    assert result.leak == 0.0
    # Every block of a CIFAR ResNet has an identity path, which ends at the block's first convolution.
    assert set(result.shortcuts) == FIRST_OF_BLOCKS
    assert all(0 < share < 1 for share in result.shortcuts.values())
    assert result.layers["layer1.0.conv1"].share == result.shortcuts["layer1.0.conv1"]
    assert "9 layer(s) also get gradient past the feedback" in str(result)


def test_cut_shortcuts_carry_exactly_nothing():
    model = biotorch.convert(biotorch.models.build("resnet20"), "dfa", shortcuts="cut")
    result = biotorch.audit(model, images())
    assert result.leak == 0.0
    assert result.shortcuts == {}
    assert {verdict.share for verdict in result.layers.values()} == {0.0}


def test_projection_shortcuts_of_torchvision_are_not_leaks_and_identities_are():
    model = biotorch.convert(torchvision.models.resnet18(num_classes=5), "dfa")
    expected = {"layer1.0.conv1", "layer1.1.conv1", "layer2.1.conv1", "layer3.1.conv1", "layer4.1.conv1"}
    assert set(biotorch.audit(model, images()).shortcuts) == expected
    # The structural report and the experiment agree.
    assert {f"{block}.conv1" for block in biotorch.summary(model).leaking_shortcuts} == expected
    biotorch.convert(model, "dfa", shortcuts="cut")
    assert biotorch.audit(model, images()).shortcuts == {}


def test_a_feedback_rule_shows_the_share_of_shortcuts_without_a_leak():
    result = biotorch.audit(biotorch.convert(biotorch.models.build("resnet20"), "fa"), images())
    assert result.leak == 0.0
    assert set(result.shortcuts) == FIRST_OF_BLOCKS


def test_a_network_without_shortcuts_shows_none():
    for rule in ("dfa", "fa", "usf"):
        assert biotorch.audit(biotorch.convert(mlp(), rule), batch()).shortcuts == {}


def test_a_layer_left_on_backpropagation_beside_a_converted_one_shows_as_gradient_past_the_feedback():
    class Parallel(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.left, self.right, self.head = (nn.Linear(6, 6) for _ in range(4))

        def forward(self, x):
            x = self.first(x).relu()
            return self.head((self.left(x) + self.right(x)).relu())

    model = biotorch.convert(Parallel(), {"right": "backpropagation", "*": "fa"})
    with torch.no_grad():
        model.left.feedback.zero_()
    assert biotorch.audit(model, batch()).layers["left"].share == 1.0


# Neutrality --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["backpropagation", "brsf", "dfa"])
def test_the_audit_leaves_the_network_and_the_random_state_as_they_were(rule):
    model = biotorch.convert(biotorch.models.build("resnet20"), rule)
    model.layer2.eval()
    F.cross_entropy(model(images()), labels(2)).backward()
    parameters = dict(model.named_parameters())
    before = {
        "state": state(model),
        "gradients": {name: p.grad.clone() for name, p in parameters.items()},
        "flags": [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        "objects": [id(tensor) for tensor in (*parameters.values(), *model.buffers())],
    }
    random, inputs = torch.get_rng_state(), images()
    biotorch.audit(model, inputs)
    assert same(state(model), before["state"])
    assert same({name: p.grad for name, p in parameters.items()}, before["gradients"])
    flags = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    assert flags == before["flags"]
    assert [id(tensor) for tensor in (*model.parameters(), *model.buffers())] == before["objects"]
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(inputs, images())
    assert not inputs.requires_grad


def test_the_network_is_restored_even_where_the_audit_fails():
    model = biotorch.convert(mlp(), "fa")
    calls = []

    def fail_late(*_):
        calls.append(1)
        if len(calls) > 2:  # the first passes have weights of their own, this one is scrambled
            raise KeyError("stop")

    handle = model[4].register_forward_hook(fail_late)
    before = state(model)
    with pytest.raises(KeyError):
        biotorch.audit(model, batch())
    handle.remove()
    assert same(state(model), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_audit_repeats_to_the_bit():
    model = biotorch.convert(biotorch.models.build("resnet20"), "dfa")
    assert biotorch.audit(model, images()).shortcuts == biotorch.audit(model, images()).shortcuts


def test_the_audit_works_under_no_grad_and_on_frozen_parameters():
    model = biotorch.convert(mlp(), "fa")
    model[0].requires_grad_(False)
    with torch.no_grad():
        assert biotorch.audit(model, batch()).leak == 0.0
    assert biotorch.audit(biotorch.convert(model, "backpropagation"), batch()).leak == 1.0


# The same proof without the audit ----------------------------------------------------------------


def overwritten_gradients(model: nn.Module, inputs: torch.Tensor, keep_signs: bool | None) -> dict[str, torch.Tensor]:
    """Gradients of one batch where every W is replaced between forward and backward (None: left)."""
    x = inputs.clone().requires_grad_()
    model.zero_grad()
    before = {m: m.weight.detach().clone() for m in model.modules() if isinstance(m, FeedbackLayer)}
    loss = F.cross_entropy(model(x), labels(len(x)))
    generator = torch.Generator().manual_seed(1)
    for layer, weight in before.items():
        if keep_signs is not None:
            noise = torch.randn(weight.shape, generator=generator)
            layer.weight.data.copy_(noise.abs() * weight.sign() if keep_signs else noise)
    loss.backward()
    for layer, weight in before.items():
        layer.weight.data.copy_(weight)
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    return {**found, "input": x.grad.clone()}


@pytest.mark.parametrize("architecture", ["mlp", "le_net_cifar", "resnet20"])
@pytest.mark.parametrize("rule", ["fa", "dfa"])
def test_gradients_are_equal_to_the_bit_after_every_weight_is_overwritten(rule, architecture):
    model, inputs = (mlp(), batch()) if architecture == "mlp" else (biotorch.models.build(architecture), images())
    biotorch.convert(model, rule)
    model.eval()  # batch-norm statistics would move between the passes
    expected = overwritten_gradients(model, inputs, keep_signs=None)
    assert same(overwritten_gradients(model, inputs, keep_signs=False), expected)


@pytest.mark.parametrize("architecture", ["mlp", "le_net_cifar", "resnet20"])
def test_gradients_of_backpropagation_change_with_the_weights(architecture):
    model, inputs = (mlp(), batch()) if architecture == "mlp" else (biotorch.models.build(architecture), images())
    biotorch.convert(model, "backpropagation")
    model.eval()
    expected = overwritten_gradients(model, inputs, keep_signs=None)
    for keep_signs in (True, False):
        assert not torch.equal(overwritten_gradients(model, inputs, keep_signs)["input"], expected["input"])


@pytest.mark.parametrize("rule", ["brsf", "frsf", "usf"])
def test_gradients_of_sign_rules_depend_on_the_signs_and_on_nothing_else(rule):
    model = biotorch.convert(mlp(), rule)
    expected = overwritten_gradients(model, batch(), keep_signs=None)
    assert same(overwritten_gradients(model, batch(), keep_signs=True), expected)
    assert not torch.equal(overwritten_gradients(model, batch(), keep_signs=False)["input"], expected["input"])
