"""`biotorch.models.<method>`: constructors, and the architectures of the paper."""

from __future__ import annotations

import copy
import importlib

import pytest
import torch
from networks import RULES, TRAINING, gradients, images, labels
from rule_names import one_per_path
from torch import nn

import biotorch
from biotorch.layers import FeedbackLayer

pytestmark = pytest.mark.usefixtures("targets")

NAMES = ("resnet18", "le_net_mnist", "le_net_cifar", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110")
#: All constructors of the first system.
CONSTRUCTORS = (
    *("alexnet", "densenet121", "densenet161", "densenet169", "densenet201", "le_net_mnist", "le_net_cifar"),
    *("mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "mnasnet1_3", "resnet18", "resnet20", "resnet32", "resnet34"),
    *("resnet44", "resnet50", "resnet56", "resnet101", "resnet110", "resnet152", "resnet1202", "resnext50_32x4d"),
    *("resnext101_32x8d", "wide_resnet50_2", "wide_resnet101_2"),
)
#: Families beside them.
BESIDE = (
    *("vit_b_16", "convnext_tiny", "swin_t", "efficientnet_b0", "regnet_y_400mf"),
    *("mlp", "char_transformer", "lstm", "gru"),
)
#: In millions: He et al. 2016, table 6.
PUBLISHED = {"resnet20": 0.27, "resnet32": 0.46, "resnet44": 0.66, "resnet56": 0.85, "resnet110": 1.7}


def constructor(method: str, name: str):
    return getattr(importlib.import_module(f"biotorch.models.{method}"), name)


def rules(model: nn.Module) -> set[str]:
    return {m.rule.name for m in model.modules() if isinstance(m, FeedbackLayer)}


def example(name: str) -> torch.Tensor:
    return images(channels=1 if name == "le_net_mnist" else 3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", RULES)
def test_every_constructor_builds_its_network_under_its_rule(method, name):
    model = constructor(method, name)(num_classes=7)
    assert rules(model) == {method}
    assert biotorch.summary(model).left == []
    with torch.no_grad():
        assert model(example(name)).shape == (2, 7)


@pytest.mark.parametrize("method", one_per_path(RULES))
def test_all_constructors_of_the_first_system_and_more_build_under_every_rule(method):
    assert len(set(CONSTRUCTORS)) == 26
    for name in (*CONSTRUCTORS, *BESIDE):
        # RegNet computes its widths with tensors: it needs a device that has data.
        with torch.device("cpu" if name.startswith("regnet") else "meta"):
            model = constructor(method, name)(num_classes=7)
        assert rules(model) == {method}, name
        assert biotorch.summary(model).left == [], name
        *_, last = (m for m in model.modules() if isinstance(m, FeedbackLayer) and m.output_size is not None)
        assert last.output_size == 7, name


def test_constructors_pass_the_arguments_of_the_architecture_on():
    model = constructor("dfa", "mlp")(False, True, 3, None, in_features=6, width=[5])
    assert model(torch.ones(2, 6)).shape == (2, 3)
    with pytest.raises(ValueError, match=r"argument of 'mlp' 'witdh'.*'width'"):
        constructor("fa", "mlp")(witdh=5)
    with pytest.raises(ValueError, match=r"argument of 'resnet18' 'group'.*'groups'"):
        constructor("fa", "resnet18")(group=5)


def test_resnet1202_builds_under_a_rule():
    model = constructor("fa", "resnet1202")(num_classes=10)
    assert rules(model) == {"fa"}
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(19.4e6, rel=0.005)


@pytest.mark.parametrize("method", RULES)
def test_constructors_take_a_configuration_and_leave_it_as_it_is(method):
    config = {"type": method, "options": {"constrain_weights": True, "init": "normal", "gradient_clip": True}}
    before = copy.deepcopy(config)
    model = constructor(method, "le_net_mnist")(False, True, 5, config)
    assert config == before
    rule = model.features[0].rule
    assert (rule.init, rule.constrain_weights, rule.gradient_clip) == ("normal", True, True)
    assert model.features[6].weight.std().item() == pytest.approx(1.0, rel=0.05)
    assert model(example("le_net_mnist")).shape == (2, 5)


def test_a_configuration_for_another_method_is_an_error():
    with pytest.raises(ValueError, match=r"layer_config asks for rule 'usf', but rule 'fa' is given"):
        constructor("fa", "le_net_mnist")(layer_config={"type": "usf"})


def test_without_pretrained_weights_every_rule_starts_from_the_same_w():
    networks = []
    for method in RULES:
        torch.manual_seed(4)
        networks.append(dict(constructor(method, "le_net_cifar")().named_parameters()))
    for other in networks[1:]:
        assert all(torch.equal(networks[0][name], other[name]) for name in networks[0])


@pytest.mark.parametrize("method", TRAINING)
def test_a_constructed_network_trains_every_layer(method):
    model = constructor(method, "le_net_cifar")(num_classes=4)
    found = gradients(model, images(), labels(2, 4))
    assert found.keys() == dict(model.named_parameters()).keys()
    assert all(gradient.any() for gradient in found.values())


def test_the_names_are_listed():
    module = importlib.import_module("biotorch.models.fa")
    assert dir(module) == biotorch.models.available()
    assert {*CONSTRUCTORS, *BESIDE} <= set(dir(module))


def test_an_unknown_architecture_names_the_nearest_one():
    module = importlib.import_module("biotorch.models.fa")
    with pytest.raises((AttributeError, ImportError), match=r"'resnet19'.*resnet18"):
        _ = module.resnet19
    with pytest.raises(ValueError, match=r"'le_net_mnits'.*'le_net_mnist'"):
        biotorch.models.build("le_net_mnits")


def test_importing_an_unknown_architecture_names_the_nearest_one():
    # Python replaces an AttributeError raised here by "cannot import name", without the hint.
    with pytest.raises(ImportError, match="resnet18"):
        from biotorch.models.fa import resnet19  # noqa: F401


def test_a_missing_attribute_of_a_method_module_is_still_an_attribute_error():
    # `hasattr`, `getattr(..., default)`, `inspect` and pickle ask modules such questions.
    module = importlib.import_module("biotorch.models.fa")
    assert getattr(module, "__wrapped__", None) is None
    assert getattr(module, "_private", None) is None


# Architecture facts ------------------------------------------------------------------------------

TABLE_5 = {
    "le_net_mnist": [(6, 1, 5, 5), (16, 6, 5, 5), (120, 16, 5, 5), (84, 120), (10, 84)],
    "le_net_cifar": [(32, 3, 3, 3), (64, 32, 3, 3), (128, 64, 3, 3), (256, 128), (10, 256)],
}


@pytest.mark.parametrize("name", TABLE_5)
def test_the_lenets_have_the_layers_of_table_5(name):
    model = biotorch.models.build(name)
    assert [tuple(p.shape) for p in model.parameters() if p.dim() > 1] == TABLE_5[name]
    assert [tuple(p.shape) for p in model.parameters() if p.dim() == 1] == [(s[0],) for s in TABLE_5[name]]
    pools = [m for m in model.modules() if isinstance(m, nn.MaxPool2d)]
    assert [(p.kernel_size, p.stride) for p in pools] == [(2, 2), (2, 2)]
    assert sum(isinstance(m, nn.ReLU) for m in model.modules()) == 4


def test_the_cifar_lenet_averages_the_last_feature_map():
    model = biotorch.models.build("le_net_cifar")
    hidden = model.features[:8](images())
    assert hidden.shape == (2, 128, 4, 4)
    torch.testing.assert_close(model.classifier(hidden.mean((2, 3))), model(images()))


@pytest.mark.parametrize("name", PUBLISHED)
def test_cifar_resnets_have_the_published_number_of_parameters(name):
    model = biotorch.models.build(name)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    assert round(millions, 1 if PUBLISHED[name] >= 1 else 2) == PUBLISHED[name]
    # Layers with weights: the depth in the name, so the shortcuts have none.
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()) == int(name.removeprefix("resnet"))


def test_option_a_shortcuts_subsample_and_pad_with_zero_channels():
    block = biotorch.models.build("resnet20").layer2[0]
    assert not [name for name, _ in block.named_parameters() if not name.startswith(("conv", "bn"))]
    x = torch.randn(2, 16, 8, 8)
    shortcut = block.shortcut(x)
    assert shortcut.shape == (2, 32, 4, 4)
    assert torch.equal(shortcut[:, 8:24], x[:, :, ::2, ::2])
    assert not shortcut[:, :8].any()
    assert not shortcut[:, 24:].any()


def test_torchvision_names_are_torchvision_networks():
    model = biotorch.models.build("resnet18", num_classes=5)
    assert type(model).__module__ == "torchvision.models.resnet"
    assert model.fc.out_features == 5
    assert rules(model) == set()
