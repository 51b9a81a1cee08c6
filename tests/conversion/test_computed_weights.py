"""Weights that are computed from other tensors: parametrizations, pruning, the hooks of weight_norm, LoRA."""

from __future__ import annotations

import copy
import operator

import pytest
import torch
from networks import batch, mlp, same, state
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torchvision.models import swin_transformer

import biotorch
from biotorch import ConversionError
from biotorch.layers import FeedbackLayer

pytestmark = pytest.mark.filterwarnings("ignore:.*(weight|spectral)_norm.*:FutureWarning")


class Added(nn.Module):
    """LoRA by hand: W + B A, of rank 2."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(2, weight[0].numel())), nn.Parameter(torch.randn(len(weight), 2))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.b @ self.a).view(weight.shape)


def lora(layer: nn.Module, name: str) -> None:
    getattr(layer, name).requires_grad_(False)
    parametrize.register_parametrization(layer, name, Added(getattr(layer, name)))


PARAMETRIZED = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "lora": lora,
}
HOOKED = {
    "old weight_norm": nn.utils.weight_norm,
    "old spectral_norm": nn.utils.spectral_norm,
    "pruned": lambda layer, name: prune.random_unstructured(layer, name, 0.5),
}
REMOVED = {
    **dict.fromkeys(PARAMETRIZED, parametrize.remove_parametrizations),
    "old weight_norm": nn.utils.remove_weight_norm,
    "old spectral_norm": nn.utils.remove_spectral_norm,
    "pruned": prune.remove,
}
every_kind = pytest.mark.parametrize("kind", PARAMETRIZED | HOOKED)
both_orders = pytest.mark.parametrize("converted_first", [False, True])


class Net(nn.Module):
    """Every way in which a layer reads its weights: a convolution, attention, a cell, linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.cell, self.fc = nn.Conv1d(3, 8, 3), nn.GRUCell(8, 6), nn.Linear(6, 4)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.fc(self.cell(x[:, 0], self.cell(x[:, 1])))


WEIGHTS = ("conv.weight", "attention.in_proj_weight", "cell.weight_ih", "cell.weight_hh", "fc.weight")


def net(kind: str = "", rule: str = "", converted_first: bool = False) -> Net:
    """In float64 and eval mode; `kind` computes the weights, `rule` converts, in the order asked for."""
    torch.manual_seed(0)
    model = Net().double()
    if rule and converted_first:
        biotorch.convert(model, rule, seed=1, output="fc", strict=True)
    if kind:
        for name in WEIGHTS:
            torch.manual_seed(2)
            owner, _, own = name.rpartition(".")
            (PARAMETRIZED | HOOKED)[kind](model.get_submodule(owner), own)
    if rule and not converted_first:
        biotorch.convert(model, rule, seed=1, output="fc", strict=True)
    return model.eval()


def sequences() -> Tensor:
    return torch.randn(5, 3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    model(sequences()).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=lambda text, name=name: f"{name}: {text}")


@both_orders
@pytest.mark.parametrize("rule", ["backpropagation", "fa", "usf", "dfa"])
@every_kind
def test_the_gradient_of_the_effective_weight_flows_on_to_what_it_is_computed_from(kind, rule, converted_first):
    """B stands where the effective W would; the reference is a network whose parameter is the effective W itself."""
    computed, plain = net(kind), net()
    with torch.no_grad():
        computed(sequences())
        for name in WEIGHTS:
            plain.get_parameter(name).copy_(operator.attrgetter(name)(computed))
    biotorch.convert(plain, rule, seed=1, output="fc")
    by_weight = gradients(plain)
    computed(sequences())  # where hooks compute the weights, they do it anew
    sources = {name: p for name, p in computed.named_parameters() if p.requires_grad}
    expected = {name: by_weight[name] for name in sources if name in by_weight}
    for name in WEIGHTS:
        effective = operator.attrgetter(name)(computed)
        found = torch.autograd.grad(effective, list(sources.values()), by_weight[name], allow_unused=True)
        expected |= {key: value for key, value in zip(sources, found, strict=True) if value is not None}
    assert_equal(gradients(net(kind, rule, converted_first)), expected)


@both_orders
@every_kind
def test_revert_and_removal_give_back_the_network_that_computes_the_same(kind, converted_first):
    model, plain = net(kind, "fa", converted_first), net(kind)
    assert same({name: value for name, value in state(model).items() if "feedback" not in name}, state(plain))
    with torch.no_grad():
        expected = plain(sequences())
        assert torch.equal(model(sequences()), expected)
        assert torch.equal(biotorch.revert(model)(sequences()), expected)
    assert same(state(model), state(plain))
    assert [type(module).__mro__[1:] for module in model.modules()] == [type(m).__mro__[1:] for m in plain.modules()]
    assert_equal(gradients(model), gradients(plain))
    for each in (model, net(kind, "fa", converted_first)):  # after revert, and under the rule
        for name in WEIGHTS:
            owner, _, own = name.rpartition(".")
            REMOVED[kind](each.get_submodule(owner), own)
        torch.testing.assert_close(each(sequences()), expected)
        assert [type(module) for module in biotorch.revert(each).modules()] == [type(m) for m in net().modules()]


@both_orders
@every_kind
def test_a_copy_learns_by_itself_and_reverts(kind, converted_first):
    model = net(kind, "fa", converted_first)
    copied = copy.deepcopy(model)
    assert_equal(gradients(copied), gradients(model))
    for name, connection in biotorch.layers.connections(copied).items():
        assert connection.layer is copied.get_submodule(name.split(".")[0])
    assert_equal(gradients(biotorch.revert(copied)), gradients(net(kind)))
    if kind in PARAMETRIZED:
        assert_equal(gradients(copy.deepcopy(copied)), gradients(net(kind)))
    model(sequences())


@every_kind
def test_the_summary_counts_every_parameter_once(kind):
    model = net(kind, "fa")
    rows = biotorch.summary(model).rows
    assert {row.rule for row in rows} == {"fa"}
    assert sum(row.parameters for row in rows) == sum(p.numel() for p in net(kind).parameters())


def test_conversion_and_summary_do_not_move_what_computes_a_weight_in_training_mode():
    model = net("spectral_norm").train()
    before = state(model)
    biotorch.convert(model, "dfa", output="fc")
    biotorch.summary(model)
    assert same({name: value for name, value in state(model).items() if name in before}, before)


@pytest.mark.parametrize("options", [{"rule": "kp"}, {"rule": "brsf"}, {"rule": "fa", "constrain_weights": True}])
@every_kind
def test_a_rule_that_needs_a_parameter_refuses_every_such_layer_at_conversion_with_the_cure(kind, options):
    model = net(kind)
    with pytest.raises(ConversionError, match=r"(?s)conv: its weight is computed .*fc: .*remove_parametrizations"):
        biotorch.convert(model, output="fc", **options)
    assert not any(isinstance(module, FeedbackLayer) for module in model.modules())


def test_weights_that_are_computed_cannot_be_drawn_again():
    with pytest.raises(ConversionError, match=r"fc: its weight is computed .* cannot be drawn: copy_weights=True"):
        biotorch.convert(net("lora"), "fa", copy_weights=False, output="fc")


@both_orders
def test_attention_refuses_the_hook_of_a_projection_that_it_never_calls(converted_first):
    """Neither does torch's own attention run this hook: after a step its weight would be that of the step before."""
    model = nn.ModuleDict({"a": nn.MultiheadAttention(8, 2), "fc": nn.Linear(8, 3)})
    if not converted_first:
        prune.random_unstructured(model["a"].out_proj, "weight", 0.5)
        with pytest.warns(biotorch.ConversionWarning, match=r"a .*out_proj: its weight is computed by a hook"):
            biotorch.convert(model, "fa")
        return
    biotorch.convert(model, "fa")
    prune.random_unstructured(model["a"].out_proj, "weight", 0.5)
    with pytest.raises(RuntimeError, match=r"a: MultiheadAttention reads the weight .*prune\.remove"):
        model["a"](*[torch.randn(2, 3, 8)] * 3)
    prune.remove(model["a"].out_proj, "weight")
    model["a"](*[torch.randn(2, 3, 8)] * 3)


def swin(rule: str) -> nn.Module:
    torch.manual_seed(0)
    model = swin_transformer.SwinTransformer([4, 4], 8, [2], [2], [2, 2], num_classes=3).eval()
    return biotorch.convert(model, rule, seed=0)


def first_gradient(model: nn.Module) -> Tensor:
    model(torch.ones(1, 3, 8, 8)).square().sum().backward()
    return model.features[0][0].weight.grad


@both_orders
def test_a_reader_finds_the_layer_of_a_weight_that_is_computed(converted_first):
    """weight_norm begins at the weight that was there, so the gradient upstream is that without it."""
    model = swin("fa") if converted_first else biotorch.revert(swin("fa"))
    parametrizations.weight_norm(model.features[1][0].attn.qkv)
    expected = first_gradient(swin("fa"))
    torch.testing.assert_close(first_gradient(biotorch.convert(model, "fa", seed=0)), expected)
    assert not torch.allclose(first_gradient(swin("backpropagation")), expected)


def test_a_reader_refuses_the_hook_of_a_layer_that_it_never_calls():
    model = swin("fa")
    prune.random_unstructured(model.features[1][0].attn.qkv, "weight", 0.5)
    with pytest.raises(RuntimeError, match=r"attn\.qkv: ShiftedWindowAttention reads the weight .*prune\.remove"):
        first_gradient(model)


def test_parameters_that_the_shallow_control_froze_thaw_where_pruning_or_a_parametrization_has_put_them():
    model = biotorch.convert(mlp(), "shallow")
    prune.random_unstructured(model[0], "weight", 0.5)
    parametrizations.weight_norm(model[2])
    biotorch.revert(model)
    assert all(p.requires_grad for p in model.parameters())


class Adapted(nn.Module):
    """A layer with an adapter beside it, as peft wraps a layer."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = layer.requires_grad_(False)
        self.lora_a = nn.Linear(layer.in_features, 2, bias=False)
        self.lora_b = nn.Linear(2, layer.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_b(self.lora_a(x))


@both_orders
def test_layers_with_adapters_learn_by_the_rule(converted_first):
    model = mlp()
    if converted_first:
        biotorch.convert(model, "fa")
    model[2] = Adapted(model[2])
    biotorch.convert(model, "fa", strict=True)
    x = batch()
    hidden = model[:2](x).detach().requires_grad_()
    error = torch.randn(4, 8)
    model[2](hidden).backward(error)
    adapted = model[2]
    through = error @ adapted.lora_b.feedback  # (N, 2)
    torch.testing.assert_close(hidden.grad, error @ adapted.base_layer.feedback + through @ adapted.lora_a.feedback)
    torch.testing.assert_close(adapted.lora_a.weight.grad, through.T @ hidden)
    assert adapted.base_layer.weight.grad is None
