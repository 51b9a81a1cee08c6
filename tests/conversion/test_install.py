"""Which rule each layer gets, what is reported as left, and that all problems come at once."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from networks import RULES, batch, gradients, labels, mlp, same, state
from torch import nn
from torch.nn.utils import parametrizations

import biotorch
from biotorch import ConversionError, ConversionWarning
from biotorch.layers import FeedbackLayer


def rules(model: nn.Module) -> dict[str, str]:
    return {name: m.rule.name for name, m in model.named_modules() if isinstance(m, FeedbackLayer)}


# Per-layer rules ---------------------------------------------------------------------------------


def test_a_function_chooses_the_rule_of_each_layer():
    seen = {}

    def choose(name, layer):
        seen[name] = type(layer)
        return "backpropagation" if name == "4" else "fa"

    model = biotorch.convert(mlp(), rule=choose)
    assert rules(model) == {"0": "fa", "2": "fa", "4": "backpropagation"}
    assert seen == {"0": nn.Linear, "2": nn.Linear, "4": nn.Linear}


def test_patterns_choose_the_rule_of_each_layer_and_the_first_match_wins():
    model = biotorch.convert(mlp(), {"4": "bp", "[24]": "usf", "*": "fa"})
    assert rules(model) == {"0": "fa", "2": "usf", "4": "backpropagation"}


def test_a_rule_object_carries_its_own_options():
    clipped = biotorch.rules.make("fa", gradient_clip=True)
    model = biotorch.convert(mlp(), {"0": clipped, "*": "fa"})
    assert model[0].rule is clipped
    assert not model[2].rule.gradient_clip


def test_the_last_layer_stays_backpropagation_under_a_direct_rule():
    model = biotorch.convert(mlp(), {"4": "backpropagation", "*": "dfa"})
    assert model[0].feedback.shape == (3, 6)
    direct = biotorch.convert(copy.deepcopy(model), "dfa")
    # The output layer learns from the true error either way: same gradient of its own weight.
    assert torch.equal(
        gradients(model, batch(), labels())["4.weight"], gradients(direct, batch(), labels())["4.weight"]
    )


def test_mixed_rules_each_take_the_options_they_know():
    with pytest.warns(ConversionWarning, match="no residual block to cut"):
        model = biotorch.convert(mlp(), {"4": "backpropagation", "*": "dfa"}, shortcuts="cut", gradient_clip=True)
    assert model[0].rule.shortcuts == "cut"
    assert model[0].rule.gradient_clip
    assert model[4].rule.gradient_clip


def test_none_leaves_a_layer_as_it_is():
    model = mlp()
    with warnings.catch_warnings():  # whether this warns is another test
        warnings.simplefilter("ignore", ConversionWarning)
        biotorch.convert(model, lambda name, layer: None if name == "0" else "fa")
    assert type(model[0]) is nn.Linear
    assert rules(model) == {"2": "fa", "4": "fa"}


def test_arguments_of_the_caller_are_never_changed():
    choice = {"4": "backpropagation", "*": "dfa"}
    blocks = ["[024]"]
    options = {"init": "xavier", "blocks": blocks}
    before = copy.deepcopy((choice, options))
    biotorch.convert(mlp(), choice, **options)
    assert (choice, options) == before

    config = {"type": "fa", "options": {"constrain_weights": False, "init": "xavier", "gradient_clip": False}}
    before = copy.deepcopy(config)
    biotorch.module.BioModule(mlp(), "fa", layer_config=config)
    biotorch.layers.Linear(3, 2, layer_config=config)
    assert config == before


# output_dim --------------------------------------------------------------------------------------


def test_the_output_size_of_a_direct_rule_is_inferred():
    model = biotorch.convert(mlp(), "dfa")
    assert [model[i].feedback.shape[0] for i in (0, 2, 4)] == [3, 3, 3]
    assert model[4].output is not None
    assert model[0].output is None


def test_an_output_size_that_fits_is_accepted_and_one_that_does_not_raises():
    biotorch.convert(mlp(), "dfa", output_dim=3)
    with pytest.raises(ConversionError, match=r"output_dim=10.*\(4\) has size 3"):
        biotorch.convert(mlp(), "dfa", output_dim=10)


def test_several_heads_address_their_own_rows_of_the_feedback():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 3), nn.Linear(5, 2)

        def forward(self, x):
            hidden = self.trunk(x).relu()
            return self.a(hidden), self.b(hidden)

    model = biotorch.convert(Heads(), "dfa", output=["a", "b"])
    assert model.trunk.feedback.shape == (5, 6)
    x = batch().requires_grad_()
    a, b = model(x)
    (a.sum() + 2 * b.sum()).backward()
    error = torch.tensor([1.0, 1.0, 1.0, 2.0, 2.0])
    torch.testing.assert_close(x.grad, (error @ model.trunk.feedback).expand(4, 6))


# What is left ------------------------------------------------------------------------------------


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Memory(nn.LSTM):
    """May compute something else."""


class Doubled(nn.MultiheadAttention):
    def forward(self, *args, **kwargs):
        y, weights = super().forward(*args, **kwargs)
        return 2 * y, weights


def replaced_forward() -> nn.Linear:
    layer = nn.Linear(4, 4)
    layer.forward = lambda x: x
    return layer


LEFT = {
    "subclass": (lambda: Scaled(4, 4), "a subclass of Linear"),
    "parametrized subclass": (lambda: parametrizations.orthogonal(Scaled(4, 4)), "a subclass of Linear"),
    "lazy": (lambda: nn.LazyLinear(4), "run a batch through the network first"),
    "attention with bias_kv": (lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True), "add_bias_kv=True"),
    "attention with zeros": (lambda: nn.MultiheadAttention(4, 2, add_zero_attn=True), "add_zero_attn=True"),
    "attention subclass": (lambda: Doubled(4, 2), "a subclass of MultiheadAttention"),
    "projected lstm": (lambda: nn.LSTM(4, 4, proj_size=2), "proj_size > 0"),
    "lstm subclass": (lambda: Memory(4, 4), "a subclass of LSTM"),
    "replaced forward": (replaced_forward, "replaced on the instance"),
}


@pytest.mark.parametrize("kind", LEFT)
def test_a_layer_that_cannot_be_converted_is_left_with_its_reason_and_a_warning(kind):
    build, reason = LEFT[kind]
    model = nn.ModuleDict({"odd": build(), "fc": nn.Linear(4, 3)})
    with pytest.warns(ConversionWarning, match="odd") as caught:
        biotorch.convert(model, "fa")
    assert reason in str(caught[0].message)
    assert rules(model) == {"fc": "fa"}
    rows = {row.name: row for row in biotorch.summary(model).rows}
    assert rows["odd"].rule == "backpropagation"
    assert reason in rows["odd"].note
    assert "odd" in {row.name for row in biotorch.summary(model).left}


@pytest.mark.parametrize("kind", LEFT)
def test_strict_raises_where_a_layer_would_be_left_and_changes_nothing(kind):
    build, reason = LEFT[kind]
    model = nn.ModuleDict({"odd": build(), "fc": nn.Linear(4, 3)})
    with pytest.raises(ConversionError, match="odd") as caught:
        biotorch.convert(model, "fa", strict=True)
    assert reason in str(caught.value)
    assert type(model["fc"]) is nn.Linear


def test_every_module_inside_attention_is_accounted_for():
    model = biotorch.convert(nn.TransformerEncoderLayer(8, 2, 16), "fa", strict=True)
    rows = {row.name: row for row in biotorch.summary(model).rows}
    assert list(rows) == ["self_attn", "linear1", "linear2", "norm1", "norm2"]  # out_proj is attention's own
    assert rows["self_attn"].rule == rows["linear1"].rule == rows["linear2"].rule == "fa"
    assert rows["self_attn"].feedback == ((24, 8), (8, 8))
    assert rows["norm1"].rule is None


def test_nothing_is_warned_about_where_every_layer_is_converted(recwarn):
    biotorch.convert(biotorch.models.build("resnet20"), "fa", strict=True)
    assert [w for w in recwarn if w.category is ConversionWarning] == []


def test_normalisation_and_embeddings_are_no_reason_to_warn():
    model = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    biotorch.convert(model, "fa", strict=True)  # a ConversionWarning is an error in this suite
    assert [row.rule for row in biotorch.summary(model).rows] == [None, None, "fa"]


def test_a_pattern_mapping_that_forgets_a_layer_warns_and_names_it():
    # The forgotten layers transport their weights: nothing is left silently.
    with pytest.warns(ConversionWarning, match=r"\n\s+2 \(Linear\)"):
        biotorch.convert(mlp(), {"0": "fa", "4": "fa"})


def test_strict_raises_where_the_mapping_forgets_a_layer():
    with pytest.raises(ConversionError, match=r"2 \(Linear\)"):
        biotorch.convert(mlp(), {"0": "fa", "4": "fa"}, strict=True)


# All problems at once ----------------------------------------------------------------------------


def test_all_problems_are_collected_in_one_error():
    model = nn.Sequential(nn.Linear(6, 5), nn.LSTM(5, 5, proj_size=4), nn.Linear(5, 3))
    with pytest.raises(ConversionError) as caught:
        biotorch.convert(model, {"0": "dfs", "2": "dfa", "head": "fa"}, int="xavier", output_dim=7, strict=True)
    message = str(caught.value)
    assert "5 problems" in message
    for part in ("'dfs'", "'int'", "'head'", "output_dim=7", "LSTM"):
        assert part in message, part


@pytest.mark.parametrize(("option", "word"), [("feedback_rate", "lr"), ("feedback_decay", "weight_decay")])
def test_rate_and_decay_of_a_feedback_that_is_a_parameter_are_refused_with_the_cure(option, word):
    cure = rf'"params": biotorch\.feedback_parameters\(model\), "{word}": '
    for rule in ("kp", "dkp", {"0": "fa", "*": "dkp"}):
        with pytest.raises(ConversionError, match=cure):
            biotorch.convert(mlp(), rule, **{option: 0.1})
    with pytest.raises(ValueError, match=cure):
        biotorch.rules.make("kp", **{option: 0.1})
    with pytest.raises(ValueError, match=cure):
        biotorch.layers.kp.Linear(3, 2, layer_config={"options": {option: 0.1}})
    assert (
        getattr(biotorch.convert(mlp(), {"0": "kp", "*": "ia"}, **{option: 0.3})[2].rule, option) == 0.3
    )  # `ia`'s own


BAD = {
    "rule": {"rule": "faa"},
    "option": {"rule": "fa", "clip": True},
    "output": {"rule": "dfa", "output": "head"},
    "output_dim": {"rule": "dfa", "output_dim": 4},
    "init": {"rule": "fa", "init": "xavierr", "copy_weights": False},
    "second rule": {"rule": {"0": "fa", "*": "nope"}, "copy_weights": False},
}


@pytest.mark.parametrize("case", BAD)
def test_after_an_error_the_network_is_unchanged(case):
    model = mlp()
    before, types = state(model), [type(m) for m in model.modules()]
    with pytest.raises(ConversionError):
        biotorch.convert(model, **BAD[case])
    assert [type(m) for m in model.modules()] == types
    assert same(before, state(model))


def test_after_an_error_a_converted_network_keeps_its_rule():
    model = biotorch.convert(biotorch.models.build("resnet20"), "dfa", shortcuts="cut")
    before, hooks = state(model), sum(len(m._forward_pre_hooks) for m in model.modules())
    with pytest.raises(ConversionError):
        biotorch.convert(model, "fa", init="x")
    assert same(before, state(model))
    assert set(rules(model).values()) == {"dfa"}
    assert sum(len(m._forward_pre_hooks) for m in model.modules()) == hooks


# Summary -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_the_summary_has_a_row_for_every_parametrised_module(rule):
    model = biotorch.convert(biotorch.models.build("le_net_cifar"), rule)
    report = biotorch.summary(model)
    owners = {name for name, m in model.named_modules() if m._parameters}
    assert {row.name for row in report.rows} == owners
    assert {row.rule for row in report.rows} == {rule}
    counted = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in biotorch.feedback_parameters(model))
    assert sum(row.parameters for row in report.rows) == counted
    assert report.left == []


def test_the_summary_of_a_plain_network_says_that_it_is_not_converted():
    report = biotorch.summary(mlp())
    assert {row.rule for row in report.rows} == {"backpropagation"}
    assert len(report.left) == 3


def test_the_summary_prints_a_table_with_rule_shape_and_shortcuts():
    report = biotorch.summary(biotorch.convert(biotorch.models.build("resnet20"), "dfa"))
    lines = str(report).splitlines()
    assert lines[0].split() == ["layer", "type", "rule", "parameters", "feedback", "B", "note"]
    first = next(line for line in lines if line.startswith("conv1"))
    assert first.split() == ["conv1", "Conv2d", "dfa", "432", "10x3x3x3"]
    assert next(line for line in lines if line.startswith("fc")).endswith("output layer")
    assert "9 identity shortcut(s)" in lines[-1]
    assert len(report.leaking_shortcuts) == 9


def test_the_feedback_ratio_counts_shared_feedback_once():
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    model[1].weight = model[0].weight
    assert biotorch.summary(biotorch.convert(model, "fa")).feedback_ratio == 1.0
