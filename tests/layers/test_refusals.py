"""What converted layers and conversion refuse, although nothing would crash: masks, states, registrations."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from networks import TRAINING, batch, mlp
from torch import nn
from torch.nn import functional as F

import biotorch
from biotorch.layers import LAYER_TYPES, FeedbackLayer, Product

pytestmark = pytest.mark.usefixtures("targets")


def attention() -> nn.Module:
    return biotorch.convert(nn.ModuleDict({"a": nn.MultiheadAttention(8, 2, batch_first=True)}), "fa")["a"]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({"attn_mask": torch.ones(4, 4, dtype=torch.uint8)}, r"a: attn_mask is boolean .* not torch\.uint8"),
        ({"key_padding_mask": torch.ones(3, 4, dtype=torch.int64)}, r"a: key_padding_mask is boolean"),
        ({"attn_mask": torch.ones(1, 4) > 0}, r"attn_mask has shape \(1, 4\), but needs \(4, 4\) or \(6, 4, 4\)"),
        ({"attn_mask": torch.zeros(3, 4, 4)}, r"attn_mask has shape \(3, 4, 4\)"),
        ({"key_padding_mask": torch.ones(1, 4) > 0}, r"key_padding_mask has shape \(1, 4\), but needs \(3, 4\)"),
    ],
)
def test_a_mask_that_torch_refuses_is_refused(mask, message):
    x = torch.randn(3, 4, 8)
    with pytest.raises((TypeError, ValueError), match=message):
        attention()(x, x, x, **mask)


def test_attention_on_inputs_of_different_dimensions_or_batches_is_refused():
    x = torch.randn(2, 4, 8)
    with pytest.raises(ValueError, match="must have the same number of dimensions"):
        attention()(x[0], x, x)
    with pytest.raises(ValueError, match="different numbers of examples"):
        attention()(x, x[:1], x[:1])


def test_the_causal_hint_means_the_same_with_and_without_gradients():
    layer, x, mask = attention().eval(), torch.randn(2, 4, 8), torch.zeros(4, 4)
    with torch.no_grad():
        expected, _ = layer(x, x, x, attn_mask=mask, is_causal=True, need_weights=False)
    found, _ = layer(x, x, x, attn_mask=mask, is_causal=True, need_weights=False)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("cell", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_a_cell_refuses_sequences_and_states_of_another_batch(cell):
    layer = biotorch.convert(nn.ModuleDict({"c": cell(3, 4)}), "fa")["c"]
    state = torch.randn(1, 4)
    with pytest.raises(ValueError, match=r"c takes an input \(N, 3\)"):
        layer(torch.randn(2, 5, 3))
    with pytest.raises(ValueError, match=r"a state \(N, 4\), got \(2, 3\) and \(1, 4\)"):
        layer(torch.randn(2, 3), (state, state) if cell is nn.LSTMCell else state)


def test_two_optimizers_on_one_attention_layer_redraw_their_own_matrix_only():
    model = biotorch.convert(nn.ModuleDict({"a": nn.MultiheadAttention(8, 2, batch_first=True)}), "brsf")
    layer, x = model["a"], torch.randn(2, 4, 8)
    first, second = layer.in_proj_feedback.clone(), layer.out_proj_feedback.clone()
    optimizer = torch.optim.SGD([layer.in_proj_weight], lr=0.1)
    layer(x, x, x)[0].sum().backward()
    optimizer.step()
    assert not torch.equal(layer.in_proj_feedback, first)
    assert torch.equal(layer.out_proj_feedback, second)


class Kernel(nn.Module):
    """A layer whose weight has no `weight` in its name."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(5, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.kernel)


@pytest.fixture
def registered():
    known = dict(LAYER_TYPES)

    @biotorch.register_layer(Kernel)
    class FeedbackKernel(FeedbackLayer, Kernel):
        weight_names = ("kernel",)

        def forward(self, x):
            return Kernel.forward(self, x) if self.plain else self.carry("kernel", x, None, Product())

        @property
        def output_size(self):
            return None

    yield FeedbackKernel
    LAYER_TYPES.clear()
    LAYER_TYPES.update(known)


@pytest.mark.parametrize("rule", TRAINING)
def test_a_weight_of_any_name_has_its_feedback(registered, rule):
    model = biotorch.convert(nn.Sequential(Kernel(), nn.Linear(5, 2)), rule)
    if rule != "backpropagation":
        assert model[0].kernel_feedback is not None
    model(torch.randn(3, 4)).sum().backward()
    assert model[0].kernel.grad.any()


def test_a_type_registers_once_and_with_the_right_bases(registered):
    with pytest.raises(ValueError, match="Kernel already has a feedback version: FeedbackKernel"):
        biotorch.register_layer(Kernel)(registered)
    with pytest.raises(TypeError, match="decorates a class"):
        biotorch.register_layer(3)(registered)
    with pytest.raises(TypeError, match="must derive from FeedbackLayer and Tanh"):
        biotorch.register_layer(nn.Tanh)(nn.ReLU)


def test_a_rule_that_fails_leaves_the_network_as_it_was():
    class Wrong(type(biotorch.rules.make("fa"))):
        def initial_feedback(self, weight, blank, generator):
            return torch.zeros(1, 1) if weight.shape[1] == 8 else blank  # the second layer's

    model = mlp()
    with pytest.raises(biotorch.ConversionError, match="gives a B of shape"):
        biotorch.convert(model, Wrong())
    assert [type(layer) for layer in model] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert model.state_dict().keys() == mlp().state_dict().keys()
    model(batch()).sum().backward()


def test_the_audit_reads_a_dataclass():
    @dataclasses.dataclass
    class Out:
        logits: torch.Tensor

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x):
            return Out(self.net(x))

    assert biotorch.audit(biotorch.convert(Wrapped(), "fa"), batch()).leak == 0
