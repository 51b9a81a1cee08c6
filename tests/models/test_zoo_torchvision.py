"""torchvision's networks: published weights, another number of classes, arguments."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
import torchvision
from networks import images
from torch import nn
from torchvision.models import WeightsEnum, get_model, get_model_weights, regnet

from biotorch import models
from biotorch.models import zoos

#: With a head that is linear, a convolution, behind an activation, behind attention.
WEIGHTED = ("resnet18", "squeezenet1_1", "mobilenet_v3_small", pytest.param("vit_b_16", marks=pytest.mark.slow))


@pytest.fixture(scope="module")
def torch_home(tmp_path_factory):
    return tmp_path_factory.mktemp("torch")


@pytest.fixture
def published(torch_home, monkeypatch):
    """Publishes random weights of a network, where torchvision finds them; returns them."""
    monkeypatch.setenv("TORCH_HOME", str(torch_home))

    def publish(name: str) -> dict[str, torch.Tensor]:
        file = torch_home / "hub" / "checkpoints" / Path(get_model_weights(name).DEFAULT.url).name
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(random_weights(name), file)
        return torch.load(file)

    return publish


def random_weights(name: str) -> dict[str, torch.Tensor]:
    network = get_model(name)
    for parameter in network.parameters():
        parameter.data += 0.02 * torch.rand_like(parameter)  # a head of zeros would show nothing
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.1, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    return network.state_dict()


def constructor(name: str, method: str = "fa"):
    return getattr(importlib.import_module(f"biotorch.models.{method}"), name)


def example(name: str) -> torch.Tensor:
    return images(size=224 if name.startswith("vit") else 64)


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("name", WEIGHTED)
def test_a_pretrained_network_under_a_rule_computes_what_torchvision_does(name, grad, published):
    published(name)
    plain, ours = get_model(name, weights="DEFAULT").eval(), constructor(name)(pretrained=True).eval()
    x = example(name)
    # With gradients, attention projects batch by batch where torch goes position by position: the sums are
    # rounded differently, and only float64 tells that from an error.
    rounded = name == "vit_b_16" and grad
    if rounded:
        plain, ours, x = plain.double(), ours.double(), x.double()
    with torch.set_grad_enabled(grad):
        expected, found = plain(x), ours(x)
    if rounded:
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
    else:
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", WEIGHTED)
def test_another_number_of_classes_draws_only_the_head_anew(name, published):
    file = published(name)
    model = constructor(name)(pretrained=True, num_classes=7).eval()
    found = model.state_dict()
    changed = {key for key in file if found[key].shape != file[key].shape}
    assert len(changed) == 2  # weight and bias
    assert all(torch.equal(found[key], file[key]) for key in file.keys() - changed)
    with torch.no_grad():
        assert model(example(name)).shape == (2, 7)


def test_the_new_head_is_drawn_by_the_global_generator(published):
    published("resnet18")
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        heads.append(models.build("resnet18", 7, pretrained=True).fc.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert heads[0].abs().max() <= 512**-0.5  # torch's own initializer


@pytest.mark.parametrize("classes", [None, 1000])
def test_the_published_number_of_classes_leaves_the_weights_untouched(classes, published):
    file = published("resnet18")
    found = models.build("resnet18", classes, pretrained=True).state_dict()
    assert all(torch.equal(found[key], file[key]) for key in file)


# Structure: every network, on the meta device -----------------------------------------------------


@pytest.fixture
def meta(monkeypatch):
    """Networks without storage; loading published weights does nothing."""
    plain = regnet.BlockParams.from_init_params.__func__

    def computed(cls, *args, **options):
        with torch.device("cpu"):  # RegNet computes its widths with tensors
            return plain(cls, *args, **options)

    monkeypatch.setattr(regnet.BlockParams, "from_init_params", classmethod(computed))
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *args, **options: {})
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda *args, **options: None)
    with torch.device("meta"):
        yield


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def test_the_names_read_from_files_are_those_that_torchvision_registers():
    assert list(zoos.torchvision_names()) == sorted(torchvision.models.list_models(module=torchvision.models))


@pytest.mark.parametrize("name", zoos.torchvision_names())
def test_every_pretrained_network_gets_a_head_of_its_kind(name, meta):
    plain, model = models.build(name, pretrained=True), models.build(name, 7, pretrained=True)
    before, after = shapes(plain), shapes(model)
    assert before.keys() == after.keys()
    changed = [key for key in before if before[key] != after[key]]
    heads = {key.rpartition(".")[0] for key in changed}
    assert len(heads) == 1
    assert all(after[key] == (7, *before[key][1:]) for key in changed)
    (head,) = heads
    assert type(model.get_submodule(head)) is type(plain.get_submodule(head))
    assert [n for n, _ in model.named_modules()] == [n for n, _ in plain.named_modules()]  # in the same order
    assert getattr(model, "num_classes", 7) == 7


@pytest.mark.parametrize("method", ["fa", "dfa"])
@pytest.mark.parametrize("name", zoos.torchvision_names())
@pytest.mark.slow
def test_every_network_builds_under_a_rule(name, method, meta):
    model = constructor(name, method)(num_classes=7)
    assert sum(shape[0] == 7 for shape in shapes(model).values()) >= 1


@pytest.mark.filterwarnings("ignore:auxiliary heads in the pretrained googlenet")
@pytest.mark.parametrize("pretrained", [False, True])
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_there_only_when_asked_for(name, pretrained, meta):
    def heads(**arguments):
        model = models.build(name, 7, pretrained=pretrained, **arguments)
        assert model.transform_input is pretrained
        return [key for key, shape in shapes(model).items() if shape[0] == 7 and "weight" in key], model.aux_logits

    assert heads() == heads(aux_logits=False) == (["fc.weight"], False)
    auxiliary = {"googlenet": ["aux1.fc2.weight", "aux2.fc2.weight"], "inception_v3": ["AuxLogits.fc.weight"]}[name]
    assert heads(aux_logits=True) == ([*auxiliary, "fc.weight"], True)


def test_training_mode_outputs_are_logits():
    assert models.build("googlenet", 3)(images(size=64)).shape == (2, 3)


# Arguments -----------------------------------------------------------------------------------------


def test_arguments_go_to_torchvision():
    assert models.build("vgg11", 3, dropout=0.1).classifier[2].p == 0.1
    assert models.build("resnet18", zero_init_residual=True).layer1[0].bn2.weight.abs().max() == 0
    assert models.build("mobilenet_v3_small", 3, width_mult=0.5).features[0][0].out_channels == 8


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet18", {"zero_init_residul": True}, r"argument of 'resnet18' 'zero_init_residul'.*'zero_init_residual'"),
        ("mobilenet_v3_small", {"with_mult": 1}, r"'with_mult'.*'width_mult'"),  # torchvision would ignore it
        ("resnet18", {"layers": [1, 1, 1, 1]}, "'resnet18' cannot be built with these arguments.*layers"),
        ("vit_b_16", {"image_size": 30}, "'vit_b_16' cannot be built with these arguments.*patch size"),
    ],
)
def test_wrong_arguments_are_errors(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        models.build(name, **arguments)


def test_a_vision_transformer_from_scratch_is_built_for_the_images(meta):
    model = models.build("vit_b_32", 3, input_shape=(3, 64, 64))
    assert model.encoder.pos_embedding.shape[1] == 1 + 2 * 2
    assert models.build("vit_b_32", 3, input_shape=(3, 64, 64), image_size=96).image_size == 96
    assert models.build("vit_b_32", 3, pretrained=True, input_shape=(3, 64, 64)).image_size == 224


def test_published_weights_refuse_arguments_that_change_their_network(meta):
    with pytest.raises(ValueError, match="image_size"):
        models.build("vit_b_32", pretrained=True, image_size=64)
