"""The first system's public interface (paper, section 3.1): layers, models and the wrapper."""

from __future__ import annotations

import copy
import importlib
import pickle

import pytest
import torch
from networks import TRAINING, batch, gradients, images, labels, mlp
from torch import nn
from torch.nn import functional as F

import biotorch
from biotorch.layers import FeedbackLayer

pytestmark = pytest.mark.usefixtures("targets")

LAYERS = ("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "Linear")


def layers_of(method: str):
    return importlib.import_module(f"biotorch.layers.{method}")


def config(method: str) -> dict:
    """`layer_config` as the first system took it."""
    return {"type": method, "options": {"constrain_weights": False, "init": "xavier", "gradient_clip": False}}


def needs(method: str) -> dict:
    return {"output_dim": 3} if biotorch.rules.get(method).direct else {}


def rules(model: nn.Module) -> set[str]:
    return {m.rule.name for m in model.modules() if isinstance(m, FeedbackLayer)}


# The three snippets ------------------------------------------------------------------------------


def test_snippet_one_a_model_from_the_list():
    # Create a ResNet-18 model with FA layers
    from biotorch.models.fa import resnet18

    model = resnet18()

    assert rules(model) == {"fa"}
    assert model.fc.out_features == 1000
    assert model.eval()(images(1)).shape == (1, 1000)


def test_snippet_two_a_model_of_ones_own_layers_constructs():
    # Import a convolutional and linear layer using the uSF alignment method
    import torch.nn.functional as F

    from biotorch.layers.usf import Conv2d, Linear

    # Define the custom model using the imported layers
    class Model(nn.Module):
        def __init__(self):
            super(Model, self).__init__()  # noqa: UP008
            self.conv1 = Conv2d(in_channels=3, out_channels=128, kernel_size=3)
            self.fc = Linear(in_features=128, out_features=10)

        def forward(self, x):
            out = F.relu(self.conv1(x))
            out = F.avg_pool2d(out, out.size()[3])
            return self.fc(out)  # (N, 128, 1, 1) does not fit: the paper forgot to flatten

    model = Model()

    assert rules(model) == {"usf"}
    model.fc = nn.Sequential(nn.Flatten(), model.fc)
    assert model(images(size=8)).shape == (2, 10)


def test_snippet_three_the_wrapper():
    from torchvision.models import alexnet

    from biotorch.module.biomodule import BioModule

    # Convert Alex-Net from using BP to the frSF alignment method
    model = BioModule(module=alexnet(), mode="frsf")

    assert rules(model) == {"frsf"}
    assert model.eval()(images(1, size=64)).shape == (1, 1000)


# Layers per method -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", TRAINING)
def test_layers_of_a_method_take_its_configuration_and_are_torch_layers(method):
    module, before = layers_of(method), config(method)
    conv = module.Conv2d(3, 4, 3, stride=2, padding=1, layer_config=before, **needs(method))
    linear = module.Linear(4, 3, bias=False, layer_config=before, **needs(method))
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(linear, nn.Linear)
    assert rules(nn.ModuleList([conv, linear])) == {method}
    assert conv(images(size=8)).shape == (2, 4, 4, 4)
    assert linear(torch.randn(2, 4)).shape == (2, 3)
    assert before == config(method)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("method", TRAINING)
def test_every_layer_type_of_a_method_survives_pickling_and_copying(method, name):
    layer_type = getattr(layers_of(method), name)
    layer = layer_type(2, 3, **({} if name == "Linear" else {"kernel_size": 2}), **needs(method))
    x = torch.randn(2, 2, *(() if name == "Linear" else (4,) * int(name[-2])))
    for other in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert type(other) is layer_type
        assert isinstance(other, getattr(nn, name))
        results = []
        for candidate in (layer, other):
            inputs = x.clone().requires_grad_()
            candidate(inputs).square().sum().backward()
            results.append(inputs.grad)
        assert torch.equal(*results)


def test_layers_built_by_hand_follow_the_seed_of_torch():
    def build():
        return [layers_of("fa").Linear(5, 5) for _ in range(2)]

    torch.manual_seed(1)
    first = build()
    torch.manual_seed(1)
    again = build()
    torch.manual_seed(2)
    other = build()
    assert torch.equal(first[1].feedback, again[1].feedback)
    assert torch.equal(first[1].weight, again[1].weight)
    assert not torch.equal(first[0].feedback, first[1].feedback)
    assert not torch.equal(first[0].feedback, other[0].feedback)


def test_layers_built_by_hand_are_initialised_as_configured():
    layer = layers_of("fa").Linear(300, 200, layer_config={"type": "fa", "options": {"init": "xavier"}})
    limit = (6 / 500) ** 0.5
    for tensor in (layer.weight, layer.feedback):
        assert tensor.abs().max() <= limit
        assert tensor.std().item() == pytest.approx(limit / 3**0.5, rel=0.02)
    assert not layer.bias.any()


def hand_built_dfa() -> nn.Sequential:
    dfa = layers_of("dfa")
    return nn.Sequential(
        dfa.Conv2d(3, 4, 3, output_dim=3),
        nn.ReLU(),
        nn.Flatten(),
        # As wide as the output: an output layer must not be told by its size.
        dfa.Linear(144, 3, output_dim=3),
        nn.Tanh(),
        dfa.Linear(3, 3, output_dim=3),
    )


def test_a_dfa_network_built_by_hand_trains_all_its_layers_with_the_output_error():
    model, x, y = hand_built_dfa(), images(size=8), labels(2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    z = model(x)
    error = (z.softmax(1) - F.one_hot(y, 3)) / 2
    hidden = torch.tanh(model[3](model[:3](x)))
    delta = (error @ model[5].feedback) * (1 - hidden.square())
    torch.testing.assert_close(model[3].bias.grad, delta.sum(0))
    torch.testing.assert_close(model[5].bias.grad, error.sum(0))
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name


# BioModule ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", TRAINING)
def test_the_wrapper_takes_the_first_systems_arguments_and_trains_every_layer(method):
    network, options = mlp(), config(method)
    before = copy.deepcopy(options)
    model = biotorch.BioModule(network, mode=method, copy_weights=False, layer_config=options, output_dim=3)
    assert model.module is network
    assert rules(model) == {method}
    assert options == before
    assert len([name for name in gradients(model, batch(), labels()) if "feedback" not in name]) == 6


def test_the_wrapper_keeps_weights_by_default_and_draws_them_again_if_asked():
    network = mlp()
    x = batch()
    expected = network(x)
    assert torch.equal(biotorch.BioModule(network, "fa", True)(x), expected)
    assert not torch.equal(biotorch.BioModule(network, "fa", False)(x), expected)


def test_targets_and_loss_function_are_accepted_and_change_nothing():
    model = biotorch.BioModule(mlp(), mode="dfa", output_dim=3)
    plain = gradients(model, batch(), labels())
    F.cross_entropy(model(batch(), labels(), F.cross_entropy), labels()).backward()
    assert all(torch.equal(p.grad, plain[name]) for name, p in model.named_parameters())
    named = model(x=batch(), targets=labels(), loss_function=F.cross_entropy)
    assert torch.equal(named, model(batch()))


def test_the_wrapper_may_be_pickled_and_saved():
    model = biotorch.BioModule(mlp(), mode="frsf")
    other = pickle.loads(pickle.dumps(model))
    assert torch.equal(other(batch()), model(batch()))
    fresh = biotorch.BioModule(mlp(), mode="frsf", copy_weights=False)
    fresh.load_state_dict(model.state_dict())
    found, expected = gradients(fresh, batch(), labels()), gradients(model, batch(), labels())
    assert all(torch.equal(found[name], expected[name]) for name in expected)
