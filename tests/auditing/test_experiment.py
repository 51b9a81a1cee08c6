"""Beside the verdicts of `audit`: shortcuts, neutrality, errors, its report, and the same proof by hand."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
import torchvision
from networks import batch, images, labels, mlp, same, state
from torch import nn
from torch.nn import functional as F

import biotorch
from biotorch import AuditError
from biotorch.layers import FeedbackLayer

BLOCKS = {f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3)}


# Shortcuts ---------------------------------------------------------------------------------------


def test_a_direct_rule_with_kept_shortcuts_names_each_of_them_and_its_share():
    result = biotorch.audit(biotorch.convert(biotorch.models.build("resnet20"), "dfa"), images())
    assert result.leak == 0.0
    # Every block of a CIFAR ResNet has an identity path.
    assert set(result.shortcuts) == BLOCKS
    assert all(0 < share < 1 for share in result.shortcuts.values())
    assert result.layers["layer1.0.conv1"].share == result.shortcuts["layer1.0"]
    assert "gradient goes past the feedback at the input of layer1.0 (" in str(result)


def test_cut_shortcuts_carry_exactly_nothing():
    model = biotorch.convert(biotorch.models.build("resnet20"), "dfa", shortcuts="cut")
    result = biotorch.audit(model, images())
    assert result.leak == 0.0
    assert result.shortcuts == {}
    assert {verdict.share for verdict in result.layers.values()} == {0.0}


def test_projection_shortcuts_of_torchvision_are_not_leaks_and_identities_are():
    model = biotorch.convert(torchvision.models.resnet18(num_classes=5), "dfa")
    expected = {"layer1.0", "layer1.1", "layer2.1", "layer3.1", "layer4.1"}
    assert set(biotorch.audit(model, images()).shortcuts) == expected
    # The structural report and the experiment agree.
    assert set(biotorch.summary(model).leaking_shortcuts) == expected
    biotorch.convert(model, "dfa", shortcuts="cut")
    assert biotorch.audit(model, images()).shortcuts == {}


def test_pre_norm_shortcuts_are_named_too():
    # The residual stream goes past the norm that a block starts with, not past its first feedback layer.
    def encoder():
        return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True)

    model = nn.Sequential(nn.Linear(6, 8), encoder(), encoder(), nn.LayerNorm(8), nn.Linear(8, 3))
    x = torch.randn(2, 5, 6)
    biotorch.convert(model, "dfa", strict=True)
    assert biotorch.summary(model).leaking_shortcuts == ["1", "2"]
    assert {name.split(".")[0] for name in biotorch.audit(model, x).shortcuts} == {"1", "2"}
    biotorch.convert(model, "dfa", shortcuts="cut")
    assert biotorch.audit(model, x).shortcuts == {}


def test_a_feedback_rule_shows_the_share_of_shortcuts_without_a_leak():
    result = biotorch.audit(biotorch.convert(biotorch.models.build("resnet20"), "fa"), images())
    assert result.leak == 0.0
    assert set(result.shortcuts) == BLOCKS


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


# Errors ------------------------------------------------------------------------------------------


def test_a_layer_whose_weight_is_read_without_it_transports_that_weight():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.fc = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            return F.linear(self.first(x), self.fc.weight, self.fc.bias)

    model = biotorch.convert(Functional(), "fa")
    assert biotorch.audit(model, batch()).layers == {"first": "nothing", "fc": "weights"}


def test_torchvision_swin_whose_attention_reads_its_weights_functionally_transports_nothing():
    def swin() -> nn.Module:
        return torchvision.models.SwinTransformer([4, 4], 8, [1, 1], [2, 2], [2, 2], num_classes=3).eval()

    # Its bias tables are added to scores, and no reason to warn.
    result = biotorch.audit(biotorch.convert(swin(), "fa", strict=True), images(1))
    assert result.leak == 0.0
    assert {"features.1.0.attn.qkv", "features.1.0.attn.proj"} <= set(result.layers)
    assert biotorch.audit(biotorch.convert(swin(), "backpropagation"), images(1)).leak == 1.0


def test_passes_that_do_not_repeat_prove_nothing_and_are_an_error():
    passes = itertools.count(1)

    class Unsteady(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 3)

        def forward(self, x):
            return self.fc(x) * next(passes)

    with pytest.raises(AuditError, match="differ"):
        biotorch.audit(biotorch.convert(Unsteady(), "fa"), batch())


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        (batch().to_sparse(), r"args\.0 is sparse: give it a dense copy, x\.to_dense\(\)"),
        (torch.nested.as_nested_tensor([batch()], layout=torch.jagged), r"nested: .* x\.to_padded_tensor\(0\.0\)"),
    ],
)
def test_inputs_that_are_not_dense_are_refused(inputs, told):
    with pytest.raises(AuditError, match=told):
        biotorch.audit(biotorch.convert(mlp(), "fa"), inputs)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.ReLU(), "no weight matrix"),
        (nn.BatchNorm1d(6), "no weight matrix"),
        (nn.Sequential(nn.Linear(6, 3), nn.Threshold(1e9, 0.0)), "no gradient reaches 0"),
    ],
    ids=["no parameters", "vectors only", "dead"],
)
def test_a_network_that_cannot_be_audited_is_an_error(model, message):
    with pytest.raises(AuditError, match=message):
        biotorch.audit(model, batch())


def test_overflowing_gradients_are_an_error():
    model = biotorch.convert(mlp(), "fa")
    with torch.no_grad():
        for index in (2, 4):
            model[index].feedback.fill_(1e30)
    with pytest.raises(AuditError, match="non-finite"):
        biotorch.audit(model, batch())


# The report --------------------------------------------------------------------------------------


def test_inputs_may_be_a_tensor_a_tuple_or_a_mapping():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.first, self.head = nn.Embedding(4, 6), nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x, tokens):
            return {"logits": self.head(self.first(x + self.embed(tokens)).relu())}

    model, tokens = biotorch.convert(Two(), "dfa"), torch.tensor([0, 1, 2, 3])
    expected = {"first": "nothing", "head": "nothing"}
    assert biotorch.audit(model, (batch(), tokens)).layers == expected
    assert biotorch.audit(model, {"tokens": tokens, "x": batch()}).layers == expected


def test_the_printed_table_holds_verdicts_and_the_leak():
    model = biotorch.convert(mlp(), {"0": "fa", "2": "usf", "4": "backpropagation"})
    lines = str(biotorch.audit(model, batch())).splitlines()
    assert [line.split()[:2] for line in lines[2:5]] == [["0", "nothing"], ["2", "signs"], ["4", "weights"]]
    assert lines[5].startswith("leak 0.50: 1 of 3 layers")


def test_a_root_layer_is_named_in_the_table():
    root = biotorch.convert(nn.Linear(6, 3), "fa")
    assert "(root)" in str(biotorch.audit(root, batch()))


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


class Hidden(nn.Module):
    """A weight that is no registered parameter."""

    def __init__(self):
        super().__init__()
        self.kept = [torch.randn(8, 8, requires_grad=True)]

    def forward(self, x):
        return F.linear(x, self.kept[0])


class Branching(nn.Module):
    """A forward that depends on what a weight is."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.eye(8))

    def forward(self, x):
        return x @ self.w if self.w[0, 0] == 1 else (x @ self.w).tanh()


@pytest.mark.parametrize("kind", [Hidden, Branching])
def test_what_the_audit_cannot_follow_is_named_and_counts_as_a_leak(kind):
    model = nn.Sequential(nn.Linear(6, 8), kind(), nn.Linear(8, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", biotorch.ConversionWarning)
        found = biotorch.audit(biotorch.convert(model, "fa"), batch())
    assert found.layers == {"0": "nothing", "1": "unknown", "2": "nothing"}
    assert found.leak == pytest.approx(1 / 3)
    assert "the audit cannot tell for 1" in found.verdict
    assert "1 of 3 layers cannot be judged" in str(found)


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        h = self.b(self.a(torch.cat([x, -x])).tanh()).tanh()
        return self.out(h[: len(x)] + h[len(x) :])


@pytest.mark.parametrize(("rows", "own"), [(None, True), ("tiled", True), ("interleaved", False)])
def test_the_audit_shows_whether_rows_hear_their_own_example(rows, own):
    found = biotorch.audit(biotorch.convert(Siamese(), "dfa", rows=rows), batch())
    assert found.layers["b"].hears_own is own
    assert ("b hear the errors of other examples" in found.verdict) is not own
    assert "own error" in str(found)
    assert biotorch.audit(biotorch.convert(Siamese(), "fa"), batch()).layers["b"].hears_own is None


def test_a_layer_that_never_runs_is_an_error():
    model = biotorch.convert(nn.ModuleDict({"a": nn.Linear(6, 3), "b": nn.Linear(6, 3)}), "fa")
    model.forward = model["a"].forward
    with pytest.raises(AuditError, match="the forward of b never ran"):
        biotorch.audit(model, batch())


class Caching(nn.Module):
    """A module that keeps what it makes of a parameter, and counts."""

    def __init__(self):
        super().__init__()
        self.shift, self.kept, self.calls = nn.Parameter(torch.randn(8)), {}, 0

    def forward(self, x):
        self.calls += 1
        return x + self.kept.setdefault("shift", self.shift * 2)


def test_the_audit_leaves_no_noise_in_caches_and_counts_nothing():
    model = biotorch.convert(nn.Sequential(nn.Linear(6, 8), Caching(), nn.Linear(8, 3)), "fa")
    biotorch.audit(model, batch())
    assert model[1].calls == 0
    assert model[1].kept == {}
    with torch.inference_mode():
        assert biotorch.audit(model, batch()).leak == 0.0
