"""MultiheadAttention and the transformer layers under a rule: what they give, what they carry back."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import BY_ERROR, TRAINING, same
from torch import Tensor, nn
from torch.nn import functional as F

import biotorch
from biotorch.layers import MultiheadAttention

pytestmark = pytest.mark.usefixtures("targets")

N, T, S, E, HEADS = 2, 4, 3, 6, 2


def attention(rule: str, **options) -> tuple[nn.MultiheadAttention, MultiheadAttention]:
    """torch's, and the same under a rule, in float64."""
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(E, HEADS, dtype=torch.float64, **options)
    model = nn.Sequential(copy.deepcopy(plain), nn.Linear(E, 2))  # a direct rule needs an output layer
    return plain, biotorch.convert(model, rule, seed=1)[0]


def randn(*size: int) -> Tensor:
    return torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(size)))


def sequence(length: int, layout: str, features: int = E) -> Tensor:
    sizes = {"batch first": (N, length), "time major": (length, N), "unbatched": (length,)}
    return randn(*sizes[layout], features)


CAUSAL = torch.ones(T, T, dtype=torch.bool).triu(1)
MASKS = {
    "none": {},
    "causal": {"attn_mask": CAUSAL},
    "causal, hinted": {"attn_mask": CAUSAL, "is_causal": True},
    "numbers": {"attn_mask": randn(T, T)},
    "per head": {"attn_mask": torch.stack([CAUSAL, CAUSAL.T] * N)},
    "padding": {"key_padding_mask": torch.tensor([[False, False, True, True], [False, False, False, True]])},
    "padding as numbers": {"key_padding_mask": randn(N, T)},
    "both": {"attn_mask": CAUSAL, "key_padding_mask": torch.tensor([[False] * 3 + [True]] * N)},
}


@pytest.mark.parametrize("weights", ["none", "averaged", "per head"])
@pytest.mark.parametrize("layout", ["batch first", "time major", "unbatched"])
@pytest.mark.parametrize("mask", MASKS)
def test_outputs_and_attention_weights_are_torch_s(mask, layout, weights):
    plain, converted = attention("fa", batch_first=layout != "time major")
    options = dict(MASKS[mask], need_weights=weights != "none", average_attn_weights=weights == "averaged")
    if layout == "unbatched":
        if "key_padding_mask" in options:
            options["key_padding_mask"] = options["key_padding_mask"][0]
        if mask == "per head":
            options["attn_mask"] = options["attn_mask"][:HEADS]
    x = sequence(T, layout)
    for given in (converted(x, x, x, **options), _no_grad(converted, x, **options)):
        expected = plain(x, x, x, **options)
        torch.testing.assert_close(given[0], expected[0])
        assert (given[1] is None) == (expected[1] is None) == (weights == "none")
        if weights != "none":
            torch.testing.assert_close(given[1], expected[1])


def _no_grad(layer: nn.Module, x: Tensor, **options) -> tuple[Tensor, Tensor | None]:
    with torch.no_grad():
        return layer(x, x, x, **options)


def test_without_gradients_outputs_are_torch_s_to_the_bit():
    plain, converted = attention("dfa", batch_first=True)
    x = sequence(T, "batch first")
    with torch.no_grad():
        assert torch.equal(converted(x, x, x)[0], plain(x, x, x)[0])


READS = {
    "self": lambda layout: (sequence(T, layout),) * 3,
    "memory": lambda layout: (sequence(T, layout), *(sequence(S, layout),) * 2),
    "three": lambda layout: (sequence(T, layout), sequence(S, layout), sequence(S, layout) + 1),
    "query is key": lambda layout: (*(sequence(T, layout),) * 2, sequence(T, layout) + 1),
    "query is value": lambda layout: ((x := sequence(T, layout)), x + 1, x),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("layout", ["batch first", "time major", "unbatched"])
@pytest.mark.parametrize("read", READS)
def test_backpropagation_is_autograd(read, layout, need_weights, bias):
    found = []
    for layer in attention("backpropagation", batch_first=layout != "time major", bias=bias):
        inputs = READS[read](layout)
        unique = {id(x): x.requires_grad_() for x in inputs}
        y, weights = layer(*inputs, need_weights=need_weights)
        loss = (y * randn(*y.shape)).sum()
        if need_weights:  # a loss may use them, too
            loss = loss + (weights * randn(*weights.shape)).sum()
        loss.backward()
        found.append([p.grad for p in layer.parameters()] + [x.grad for x in unique.values()])
        for x in unique.values():
            x.grad = None
    assert all(gradient.any() for gradient in found[0])
    for own, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(own, expected)


def test_backpropagation_is_autograd_where_key_and_value_have_sizes_of_their_own():
    found = []
    for layer in attention("backpropagation", batch_first=True, kdim=5, vdim=7):
        y, _ = layer(sequence(T, "batch first"), sequence(S, "batch first", 5), sequence(S, "batch first", 7))
        (y * randn(*y.shape)).sum().backward()
        found.append([p.grad for p in layer.parameters()])
    assert len(found[1]) == 6
    for own, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(own, expected)


@pytest.mark.parametrize("read", READS)
def test_under_fa_each_projection_hands_on_its_own_feedback(read):
    """A plain layer whose W is B in the backward alone: y = x W^T with W = (W - B).detach() + B, x detached from W."""
    plain, converted = attention("fa", batch_first=True)
    inputs = READS[read]("batch first")
    for x in inputs:
        x.requires_grad_()
    y, _ = converted(*inputs)
    direction = randn(*y.shape)
    found = torch.autograd.grad((y * direction).sum(), inputs)

    def project(x: Tensor, weight: Tensor, bias: Tensor, feedback: Tensor) -> Tensor:
        through = x @ feedback.T
        return through + (x @ weight.T + bias - through).detach()

    weights, biases, feedbacks = (
        each.detach().chunk(3) for each in (plain.in_proj_weight, plain.in_proj_bias, converted.in_proj_feedback)
    )
    q, k, v = (
        project(*each).view(N, -1, HEADS, E // HEADS).transpose(1, 2)
        for each in zip(inputs, weights, biases, feedbacks, strict=True)
    )
    attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    out = plain.out_proj
    z = project(attended, out.weight.detach(), out.bias.detach(), converted.out_proj_feedback)
    expected = torch.autograd.grad((z * direction).sum(), inputs)
    for own, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(own, wanted)


def test_a_hint_without_its_mask_is_an_error_as_in_torch():
    _, converted = attention("fa", batch_first=True)
    x = sequence(T, "batch first")
    with pytest.raises(RuntimeError, match="is_causal"):
        converted(x, x, x, is_causal=True)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("rule", TRAINING)
def test_dropout_acts_in_training_and_not_in_evaluation(rule, need_weights):
    plain, converted = attention(rule, batch_first=True, dropout=0.5)
    x = sequence(T, "batch first").requires_grad_()
    y, _ = converted(x, x, x, need_weights=need_weights)
    assert y.isfinite().all()
    assert not torch.equal(y, converted(x, x, x, need_weights=need_weights)[0])
    if need_weights:  # those that torch gives are dropped, too
        dropped = converted(x, x, x, average_attn_weights=False)[1]
        assert (dropped == 0).any()
    converted.eval(), plain.eval()
    torch.testing.assert_close(converted(x, x, x, need_weights=need_weights)[0], plain(x, x, x)[0])


@pytest.mark.parametrize("rule", TRAINING)
def test_autocast_runs_attention_in_the_type_asked_for(rule):
    torch.manual_seed(0)
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), nn.Linear(8, 3))
    biotorch.convert(model, rule, seed=1)
    x, mask = torch.randn(2, 4, 8), nn.Transformer.generate_square_subsequent_mask(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model[1](model[0](x, src_mask=mask))
    y.float().square().sum().backward()
    assert y.dtype == torch.bfloat16
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        # The bias of the keys moves all scores of a query alike.
        assert parameter.grad.any(), name


# Transformer layers ------------------------------------------------------------------------------


class Encoder(nn.Module):
    def __init__(self, norm_first: bool, batch_first: bool) -> None:
        super().__init__()
        self.first = nn.Linear(5, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, 0.1, norm_first=norm_first, batch_first=batch_first)
        self.head = nn.Linear(8, 3)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h = self.block(h) if self.batch_first else self.block(h.transpose(0, 1)).transpose(0, 1)
        return self.head(h)


class Decoder(Encoder):
    def __init__(self, norm_first: bool, batch_first: bool) -> None:
        super().__init__(norm_first, batch_first)
        self.memory = nn.Linear(5, 8)
        self.block = nn.TransformerDecoderLayer(8, 2, 16, 0.1, norm_first=norm_first, batch_first=batch_first)
        self.head = self._modules.pop("head")  # the output layer comes last

    def forward(self, x: Tensor) -> Tensor:
        h, memory = self.first(x[:, :3]), self.memory(x)
        if self.batch_first:
            return self.head(self.block(h, memory))
        return self.head(self.block(h.transpose(0, 1), memory.transpose(0, 1)).transpose(0, 1))


both = pytest.mark.parametrize("kind", [Encoder, Decoder])
norms = pytest.mark.parametrize("norm_first", [False, True])
layouts = pytest.mark.parametrize("batch_first", [False, True])


def network(kind: type[nn.Module], norm_first: bool, batch_first: bool) -> nn.Module:
    torch.manual_seed(0)
    return kind(norm_first, batch_first)


@both
@norms
@layouts
def test_in_evaluation_torch_s_fused_path_does_not_bypass_the_feedback(kind, norm_first, batch_first):
    model = biotorch.convert(network(kind, norm_first, batch_first), "fa", strict=True).eval()
    result = biotorch.audit(model, torch.randn(2, 3, 5))
    assert set(result.layers.values()) == {"nothing"}
    assert "block.self_attn" in result.layers
    control = biotorch.audit(network(kind, norm_first, batch_first).eval(), torch.randn(2, 3, 5))
    assert set(control.layers.values()) == {"weights"}


@both
@norms
@layouts
@pytest.mark.parametrize("rule", ["fa", "dfa"])
def test_evaluation_gives_the_outputs_of_the_unconverted_network(kind, norm_first, batch_first, rule):
    plain = network(kind, norm_first, batch_first).eval()
    converted, x = biotorch.convert(copy.deepcopy(plain), rule), torch.randn(2, 3, 5)
    with torch.no_grad():
        assert torch.equal(converted(x), plain(x))
    torch.testing.assert_close(converted(x), plain(x))


@both
@norms
@pytest.mark.parametrize("rule", BY_ERROR)
def test_a_time_major_layer_learns_what_a_batch_first_one_does(kind, norm_first, rule):
    found, x = [], torch.randn(2, 5, 5, dtype=torch.float64)
    for batch_first in (True, False):
        model = biotorch.convert(network(kind, norm_first, batch_first).double(), rule, seed=1).eval()
        z = model(x)
        (z * torch.linspace(-1, 1, z.numel(), dtype=z.dtype).view(z.shape)).sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in found[0].items():
        assert gradient.any(), name
        torch.testing.assert_close(found[1][name], gradient, msg=lambda m, n=name: f"{n}: {m}")


def test_a_time_major_layer_under_a_batch_first_output_keeps_examples_apart():
    model = biotorch.convert(network(Encoder, True, False).double(), "dfa", seed=1).eval()
    h = torch.randn(4, 5, 8, dtype=torch.float64, requires_grad=True)
    z = model.head(model.block(h.transpose(0, 1)).transpose(0, 1))
    z[0].sum().backward()  # of the first example alone
    assert h.grad[0].any()
    assert not h.grad[1:].any()


def test_as_many_tokens_as_examples_are_refused_in_a_time_major_network():
    model = biotorch.convert(network(Encoder, True, False).double(), "dfa", seed=1)
    z = model.head(model.block(torch.randn(4, 4, 8, dtype=torch.float64)))
    with pytest.raises(RuntimeError, match=r"4 positions and 4 examples.*batch_first=True"):
        z.sum().backward()


@pytest.mark.parametrize(("length", "examples"), [(5, 3), (6, 3), (3, 6)])
def test_a_network_that_is_time_major_to_its_output_learns_what_a_batch_first_one_does(length, examples):
    found, x = [], torch.randn(examples, length, 8, dtype=torch.float64)
    e = torch.randn(examples, length, 3, dtype=torch.float64)
    for batch_first in (True, False):
        torch.manual_seed(0)
        block = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=batch_first)
        model = biotorch.convert(nn.Sequential(block, nn.Linear(8, 3)).double(), "dfa", seed=1)
        model(x if batch_first else x.transpose(0, 1)).backward(e if batch_first else e.transpose(0, 1))
        found.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("rule", TRAINING)
def test_states_copies_and_reversion_hold_every_matrix_of_attention(rule):
    model = biotorch.convert(network(Encoder, True, True), rule, seed=1)
    other = biotorch.convert(network(Encoder, True, True), rule, seed=2)
    names = set(model.state_dict())
    if rule != "backpropagation":
        assert {"block.self_attn.in_proj_feedback", "block.self_attn.out_proj_feedback"} <= names
    other.load_state_dict(model.state_dict())
    assert same(other.state_dict(), model.state_dict())
    assert same(copy.deepcopy(model).state_dict(), model.state_dict())
    plain = network(Encoder, True, True)
    biotorch.revert(model)
    assert type(model.block.self_attn) is nn.MultiheadAttention
    assert same(model.state_dict(), plain.state_dict())
