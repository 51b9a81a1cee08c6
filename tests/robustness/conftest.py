"""Small networks to attack: three random layers with their images, and networks trained on the digits."""

import copy

import deceiving_networks
import pytest
import studies
import torch
from torch import nn

import biotorch
from biotorch.data import DataConfig, load
from biotorch.robustness import study

# A network of random weights -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images():
    return torch.rand(studies.N, 1, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def data(images):
    """Labelled by the network itself, but for some."""
    with torch.no_grad():
        labels = studies.network()(images).argmax(1)
    labels[:4] = (labels[:4] + 1) % 3
    return images, labels


@pytest.fixture(scope="module")
def converted():
    return biotorch.convert(studies.network(), "fa", seed=1)


# Networks that have learned the digits -------------------------------------------------------------------


@pytest.fixture(scope="session")
def digits():
    """Training images, and those that are attacked, both with their labels, in [0, 1]."""
    found = load(DataConfig(dataset="digits"), 0)

    def pixels(split):
        images, labels = next(split.in_order(len(split)))
        return (images * found.std[0] + found.mean[0]).clamp(0, 1), labels

    images, labels = pixels(found.test)
    return pixels(found.train), (images[: deceiving_networks.N], labels[: deceiving_networks.N])


@pytest.fixture(scope="session")
def run(digits):
    """A study of a network on the digits."""

    def one(model, attacks=deceiving_networks.ATTACKS, epsilons=deceiving_networks.EPSILONS, **settings):
        return study(model, digits[1], attacks=attacks, epsilons=epsilons, **settings)

    return one


@pytest.fixture(scope="session")
def nets(digits):
    plain = deceiving_networks.train(deceiving_networks.mlp(), digits[0])
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10)]
    return deceiving_networks.Nets(
        plain=plain,
        convolution=deceiving_networks.train(nn.Sequential(*layers), digits[0], epochs=20),
        aligned=deceiving_networks.train(
            biotorch.convert(deceiving_networks.mlp(), "fa", copy_weights=False, seed=1), digits[0]
        ),
        unaligned=biotorch.convert(copy.deepcopy(plain), "fa", seed=1),
    )
