"""`points`: the error arrives at the input of a block; inside it, gradients go by backpropagation."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

import biotorch
from biotorch import ConversionError
from biotorch.layers import FeedbackLayer, connections
from biotorch.testing import assert_all_learn, assert_close, collect, loss_of

pytestmark = pytest.mark.parametrize("rule", ["dfa"])


def resnet(rule: str, points="layer?.*", **options) -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.resnet.ResNet(torchvision.models.resnet.BasicBlock, [2, 1, 1, 1], num_classes=5)
    return biotorch.convert(model.double().eval(), rule, points=points, seed=1, **options)


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
        self.first = nn.Linear(5, 8)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.first(x)))


def transformer(rule: str, **options) -> Transformer:
    torch.manual_seed(0)
    return biotorch.convert(Transformer().double(), rule, points=["encoder.layers.*"], seed=1, **options)


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, dtype=torch.float64)


def rules(model: nn.Module) -> dict[str, str]:
    return {name: m.rule.name for name, m in model.named_modules() if isinstance(m, FeedbackLayer)}


def test_the_first_layer_of_a_block_keeps_the_rule_and_the_others_get_backpropagation(rule):
    found = rules(resnet(rule, "layer1.*"))
    inside = {name for name in found if name.startswith("layer1")}
    assert len(inside) == 4
    assert {name: found[name] for name in inside} == {
        "layer1.0.conv1": rule, "layer1.0.conv2": "backpropagation",
        "layer1.1.conv1": rule, "layer1.1.conv2": "backpropagation",
    }  # fmt: skip
    assert {found[name] for name in set(found) - inside} == {rule}
    found = rules(transformer(rule))
    assert [name for name, each in found.items() if each == rule] == [
        "first", *(f"encoder.layers.{i}.self_attn" for i in range(3)), "head",
    ]  # fmt: skip


def test_the_outermost_modules_that_match_count(rule):
    """`layer1*` matches the stage and everything in it: the stage is the block."""
    found = rules(resnet(rule, "layer1*"))
    assert [name for name, each in found.items() if name.startswith("layer1") and each == rule] == ["layer1.0.conv1"]


def test_a_block_hands_on_exactly_the_projection_by_its_first_layer(rule):
    model = transformer(rule)
    x = torch.randn(2, 4, 5, dtype=torch.float64)
    h = model.first(x).detach()
    for i, block in enumerate(model.encoder.layers):
        h = h.detach().requires_grad_()
        z = h
        for later in model.encoder.layers[i:]:
            z = later(z)
        z = model.head(z)
        e = torch.randn_like(z)
        (found,) = torch.autograd.grad(z, h, e)
        assert torch.equal(found, e @ block.self_attn.in_proj_feedback)  # nothing along the identity path
        h = block(h)


@pytest.mark.parametrize("feedback", ["kernel", "dense", "shared"])
def test_a_block_of_a_resnet_hands_on_exactly_the_projection_by_its_first_layer(rule, feedback):
    model = resnet(rule, "layer1.*", feedback=feedback, inputs=images().double())
    h = torch.randn(2, 64, 8, 8, dtype=torch.float64, requires_grad=True)

    def rest(h: Tensor) -> Tensor:
        for stage in (model.layer2, model.layer3, model.layer4, model.avgpool):
            h = stage(h)
        return model.fc(h.flatten(1))

    e = torch.randn(2, 5, dtype=torch.float64)
    (found,) = torch.autograd.grad(rest(model.layer1(h)), h, e)
    b = model.layer1[0].conv1.connections[0].feedback
    if feedback == "dense":
        expected = (e @ b).view(h.shape)
    else:
        everywhere = e[:, :, None, None].expand(-1, -1, 8, 8)
        expected = torch.nn.grad.conv2d_input(h.shape, b, everywhere.contiguous(), padding=1)
    assert found.any()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def inside_and_by_hand(rule: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients of the parameters of a block, and those of autograd at what the block behind it hands on."""
    model = transformer(rule)
    block, last = model.encoder.layers[1], model.encoder.layers[2]
    h = torch.randn(2, 4, 8, dtype=torch.float64)
    z = model.head(last(block(h)))
    (e,) = torch.autograd.grad(loss_of(z), z, retain_graph=True)
    loss_of(z).backward()
    found = {name: p.grad.clone() for name, p in block.named_parameters()}
    model.zero_grad()
    with biotorch.true_gradients(model):
        block(h).backward(e @ last.self_attn.in_proj_feedback)
    return found, {name: p.grad for name, p in block.named_parameters()}


def test_inside_a_block_gradients_are_those_of_backpropagation(rule):
    found, expected = inside_and_by_hand(rule)
    others = [name for name in found if "in_proj" not in name]
    assert len(others) == 10
    for name in others:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-9)


def test_inside_the_first_layer_of_a_block_gradients_are_those_of_backpropagation(rule):
    assert_close(*inside_and_by_hand(rule), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("feedback", ["kernel", "shared"])
def test_the_audit_shows_weights_inside_and_nothing_across(rule, feedback):
    model = transformer(rule, feedback=feedback).float()
    result = biotorch.audit(model, torch.randn(2, 4, 5))
    inside = {f"encoder.layers.{i}.{name}" for i in range(3) for name in ("self_attn", "linear1", "linear2")}
    assert {name for name, verdict in result.layers.items() if verdict == "weights"} == inside
    assert {"first", "head"} <= {name for name, verdict in result.layers.items() if verdict == "nothing"}
    assert result.shortcuts == {}


def test_every_parameter_learns(rule):
    for model, x in ((resnet(rule), images()), (transformer(rule), torch.randn(2, 4, 5, dtype=torch.float64))):
        loss_of(model(x)).backward()
        assert_all_learn(collect(model), model)


def test_converting_again_without_points_takes_them_out(rule):
    model = transformer(rule)
    assert sum(len(m._forward_pre_hooks) for m in list(model.modules())[1:]) == 3
    biotorch.convert(model, rule, seed=1)
    assert set(rules(model).values()) == {rule}
    assert not any(m._forward_pre_hooks for m in list(model.modules())[1:])
    biotorch.convert(model, rule, points="encoder.layers.*")
    biotorch.revert(model)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_one_pattern_may_be_a_string_and_a_single_layer_a_point(rule):
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    biotorch.convert(model, rule, points="2", seed=1)
    x, e = torch.randn(4, 6), torch.randn(4, 3)
    h = model[0](x)
    (found,) = torch.autograd.grad(model[1:](h), h, e)
    torch.testing.assert_close(found, (e @ model[2].feedback) * (1 - h.tanh() ** 2))
    assert biotorch.rules.make(rule, points="2").points == ("2",)


def test_an_unknown_pattern_is_an_error_and_changes_nothing(rule):
    model = Transformer()
    with pytest.raises(ConversionError, match=r"unknown feedback point 'encoder\.layer\.\*'.*encoder"):
        biotorch.convert(model, rule, points=["encoder.layer.*"])
    assert not any(isinstance(m, FeedbackLayer) for m in model.modules())


@pytest.mark.parametrize("points", [3, [3], {"a": 1}])
def test_patterns_that_are_no_names_are_an_error(rule, points):
    with pytest.raises((ConversionError, ValueError), match="points is a name pattern or a list of them"):
        biotorch.convert(Transformer(), rule, points=points)


class Block(nn.Module):
    def __init__(self, layer: nn.Module, inputs: int) -> None:
        super().__init__()
        self.layer, self.inputs = layer, inputs

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(*[x] * self.inputs)


def test_a_block_may_begin_with_a_cell(rule):
    block = Block(nn.GRUCell(6, 6), 1)
    model = biotorch.convert(nn.Sequential(nn.Linear(4, 6), block, nn.Linear(6, 3)), rule, points=["1"])
    model(torch.randn(2, 4)).sum().backward()
    assert connections(model)["0"].trained.grad.any()


def test_a_block_that_begins_with_a_bilinear_layer_is_refused(rule):
    block = Block(nn.Bilinear(6, 6, 6), 2)
    model = biotorch.convert(nn.Sequential(nn.Linear(4, 6), block, nn.Linear(6, 3)), rule, points=["1"])
    with pytest.raises(RuntimeError, match=r"1\.layer: a residual block that begins with a Bilinear"):
        model(torch.randn(2, 4))
