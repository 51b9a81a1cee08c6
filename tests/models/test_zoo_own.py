"""`mlp`, `char_transformer`, and what `build` does with arguments and shapes of examples."""

from __future__ import annotations

import importlib
import re

import pytest
import torch
from networks import RULES, gradients, images, labels, same, state
from torch import nn
from torch.nn import functional as F

import biotorch
from biotorch import models

pytestmark = pytest.mark.usefixtures("targets")


def tokens(n: int = 2, length: int = 16, vocabulary: int = 11) -> torch.Tensor:
    return torch.randint(vocabulary, (n, length), generator=torch.Generator().manual_seed(0))


def small(**arguments) -> nn.Module:
    return models.build("char_transformer", 11, **{"context": 16, "width": 32, "depth": 2, "heads": 2, **arguments})


# mlp -----------------------------------------------------------------------------------------------


def linear_shapes(model: nn.Module) -> list[tuple[int, int]]:
    return [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)]


@pytest.mark.parametrize(
    ("arguments", "shapes"),
    [
        ({}, [(784, 512), (512, 512), (512, 10)]),
        ({"width": 9, "depth": 3, "in_features": 5}, [(5, 9), (9, 9), (9, 9), (9, 10)]),
        ({"width": [8, 4], "depth": 7}, [(784, 8), (8, 4), (4, 10)]),
        ({"depth": 0}, [(784, 10)]),
    ],
)
def test_widths_and_depth_of_the_mlp(arguments, shapes):
    assert linear_shapes(models.build("mlp", **arguments)) == shapes


def test_the_mlp_flattens_and_activates():
    model = models.build("mlp", 3, input_shape=(3, 4, 4), width=6, depth=1, activation="TANH")
    x = images(size=4)
    first, last = (m for m in model.modules() if isinstance(m, nn.Linear))
    assert torch.equal(model(x), last(first(x.flatten(1)).tanh()))


@pytest.mark.parametrize(
    ("arguments", "block"),
    [
        ({}, ["Linear", "ReLU"]),
        ({"batch_norm": True}, ["Linear", "BatchNorm1d", "ReLU"]),
        ({"layer_norm": True, "dropout": 0.2}, ["Linear", "LayerNorm", "ReLU", "Dropout"]),
    ],
)
@pytest.mark.parametrize("rule", ["backpropagation", "fa", "dfa"])
def test_a_block_of_the_mlp_is_linear_norm_activation_dropout(arguments, block, rule):
    model = models.build("mlp", 3, input_shape=(6,), width=5, **arguments)
    assert [type(m).__name__ for m in model.hidden] == ["Flatten", *block, *block]
    assert [m.p for m in model.hidden if isinstance(m, nn.Dropout)] == ([0.2, 0.2] if "Dropout" in block else [])
    found = gradients(biotorch.convert(model, rule), images(8)[:, 0, 0, :6], labels(8))
    assert all(gradient.any() for name, gradient in found.items() if name.endswith("weight"))


@pytest.mark.parametrize("activation", ["relu", "gelu", "LeakyReLU", "identity", "SiLU", "softplus"])
def test_activations_of_torch_by_name_in_any_case(activation):
    kind = type(models.build("mlp", activation=activation).hidden[2])
    assert kind.__module__ == "torch.nn.modules.activation" or kind is nn.Identity
    assert kind.__name__.casefold() == activation.casefold()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activation": "rellu"}, "activation of 'mlp' 'rellu'.*'relu'"),
        ({"width": 0}, "positive integers"),
        ({"depth": -1}, "depth of 'mlp'.*-1"),
        ({"dropout": 1.0}, "dropout of 'mlp' must be a number from 0 to less than 1, not 1.0"),
        ({"batch_norm": True, "layer_norm": True}, "batch_norm or layer_norm, not both"),
        ({"widht": 3}, "argument of 'mlp' 'widht'.*'width'"),
        ({"in_features": 10, "input_shape": (3, 4, 4)}, r"in_features=10 .*\(3, 4, 4\).*48"),
    ],
)
def test_wrong_arguments_of_the_mlp_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.build("mlp", **arguments)


@pytest.mark.parametrize(
    ("name", "argument", "wrong", "kind"),
    [
        ("mlp", "batch_norm", ["no", "false", 7, None], "true or false"),
        ("lstm", "per_step", ["no", 0], "true or false"),
        ("gru", "bidirectional", ["off"], "true or false"),
        ("mlp", "dropout", [True, "0.5"], "a number"),
        ("char_transformer", "heads", [True, 2.0, "2", 10**19], "a whole number (at most 1,000,000,000)"),
        ("lstm", "features", [True, "3"], "a whole number (at most 1,000,000,000) or null"),
        (
            "mlp",
            "width",
            ["wide", True, [5, 2.5], [10**19]],
            "a whole number (at most 1,000,000,000) or a list of them",
        ),
        ("mlp", "activation", [None, True], "a word"),
    ],
)
def test_arguments_of_another_type_are_refused_and_never_read_as_true_or_one(name, argument, wrong, kind):
    for value in wrong:
        with pytest.raises(ValueError, match=re.escape(f"{argument} of {name!r} is {kind}, not {value!r}")):
            models.build(name, **{argument: value})


def test_in_features_may_repeat_what_the_shape_says():
    assert linear_shapes(models.build("mlp", in_features=48, input_shape=(3, 4, 4)))[0] == (48, 512)


# char_transformer ------------------------------------------------------------------------------------


def test_the_transformer_gives_logits_for_every_position():
    model = small()
    assert model(tokens()).shape == (2, 16, 11)
    assert model(tokens(length=3)).shape == (2, 3, 11)
    assert [name for name, _ in model.named_children()] == ["embedding", "position", "blocks", "norm", "head"]
    assert models.build("char_transformer").head.out_features == 65
    assert model.embedding.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert model.position.weight.std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_a_token_does_not_change_what_comes_before_it(grad, converted):
    model = small().eval()  # without gradients torch takes another path
    if converted:
        biotorch.convert(model, "fa")
    x = tokens()
    other = x.clone()
    other[:, 9] = (other[:, 9] + 1) % 11
    with torch.set_grad_enabled(grad):
        change = (model(x) - model(other)).abs().amax((0, 2))
    assert not change[:9].any()
    assert (change[9:] > 0).all()


def test_the_paths_of_training_and_evaluation_agree():
    model = small().eval()
    with torch.no_grad():
        fast = model(tokens())
    torch.testing.assert_close(fast, model(tokens()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", ["backpropagation", "fa", "dfa"])
def test_the_transformer_learns_to_repeat_a_cycle(rule):
    model = biotorch.convert(small(), rule)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    x = torch.stack([(torch.arange(17) + start) % 11 for start in range(11)])
    for _ in range(150):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())
        loss.backward()
        optimizer.step()
    assert 0 < loss.item() < 0.3  # chance: log 11 = 2.4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 30, "heads": 4}, "width=30 .*heads=4"),
        ({"contxt": 3}, "argument of 'char_transformer' 'contxt'.*'context'"),
        ({"context": 8, "input_shape": (9,)}, "context=8 .*shorter than the sequences: 9"),
        ({"input_shape": (3, 4, 4)}, r"sequences of shape \(T,\), not examples of \(3, 4, 4\)"),
    ],
)
def test_wrong_arguments_of_the_transformer_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.build("char_transformer", **arguments)


def test_a_sequence_longer_than_the_context_is_an_error():
    with pytest.raises(ValueError, match=r"17 tokens exceeds the context of 16.*context=17"):
        small()(tokens(length=17))


def test_the_context_comes_from_the_sequences_unless_given():
    assert models.build("char_transformer", input_shape=(24,)).position.num_embeddings == 24
    assert models.build("char_transformer", input_shape=(24,), context=30).position.num_embeddings == 30


@pytest.mark.parametrize("method", RULES)
def test_every_parameter_of_the_transformer_learns_under_every_rule(method):
    constructor = importlib.import_module(f"biotorch.models.{method}").char_transformer
    model = constructor(num_classes=11, context=16, width=32, depth=2, heads=2)
    model.train()
    found = gradients(nn.Sequential(model, nn.Flatten(0, 1)), tokens(), labels(32, 11))
    learned = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.removeprefix("0.") for name in found} == learned
    assert all(gradient.any() for gradient in found.values())


# build -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["le_net_mnist", "resnet20", "resnet18"])
def test_architectures_for_any_image_ignore_the_shape(name):
    torch.manual_seed(1)
    plain = state(models.build(name))
    torch.manual_seed(1)
    assert same(state(models.build(name, input_shape=(3, 20, 20))), plain)


@pytest.mark.parametrize("name", ["mlp", "char_transformer", "lstm", "resnet20", "le_net_mnist"])
def test_our_own_have_no_published_weights(name):
    with pytest.raises(ValueError, match=f"no pretrained weights are published for '{name}'"):
        models.build(name, pretrained=True)


def test_an_architecture_without_arguments_says_so():
    with pytest.raises(ValueError, match="argument of 'resnet20' 'depth'"):
        models.build("resnet20", depth=3)


@pytest.mark.parametrize("name", ["mlp", "resnet18", "timm/anything", "hf/some/model"])
def test_names_that_pass(name):
    models.check_name(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet19", "unknown architecture 'resnet19'.*'resnet18'.*timm/<name>"),
        ("timm/", "'timm/' names no architecture"),
        ("hf/", "'hf/' names no architecture"),
        ("tim/resnet18", "unknown architecture 'tim/resnet18'"),
        ("timm", "unknown architecture 'timm'"),
    ],
)
def test_names_that_do_not_pass(name, message):
    with pytest.raises(ValueError, match=message):
        models.check_name(name)
    with pytest.raises(ValueError, match=message):
        models.build(name)
