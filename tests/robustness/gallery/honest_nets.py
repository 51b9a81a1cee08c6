"""Honest networks: what they show to an attack is what they are, whether that is robust or not.

Each has a word that is true of it, because a certificate or a strong attack along its own gradient says so.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from fakes import straight
from grounds import EPSILON, cnn, hardened, images_of, mlp, plain, train
from torch import nn
from torch.nn import functional as F

import biotorch
from biotorch.robustness import Normalised


@dataclasses.dataclass
class Honest:
    """A network, the word that is true of it, and how it is studied.

    Attributes:
        network: the network.
        truth: `robust` or `not robust` at `epsilon`.
        doubted: why a study may call it `inconclusive`, too; empty if it must not.
        certified: share (%) of the images proved robust at `epsilon`, for a network with a certificate.
        epsilon: radius of the study.
        settings: further arguments of the study.
        data: images and labels.
    """

    network: nn.Module
    truth: str
    certified: float | None = None
    doubted: str = ""
    epsilon: float = EPSILON
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    data: tuple[torch.Tensor, torch.Tensor] = dataclasses.field(default_factory=lambda: images_of(train=False))


HONEST: dict[str, Callable[[], Honest]] = {}


def honest(function):
    HONEST[function.__name__] = function
    return function


def after(network, function):
    """The network, with a function of its outputs behind it."""

    class After(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, images):
            return function(self.network(images))

    return After()


# Not robust ------------------------------------------------------------------------------------------------------


@honest
def undefended_cnn():
    return Honest(plain(), "not robust")


@honest
def undefended_mlp():
    torch.manual_seed(1)
    return Honest(train(mlp()), "not robust")


@honest
def undefended_with_normalised():
    torch.manual_seed(1)
    return Honest(train(Normalised(cnn(), [0.13], [0.31])), "not robust", epsilon=0.15)


@honest
def undefended_with_log_softmax():
    return Honest(after(plain(), lambda outputs: F.log_softmax(outputs, 1)), "not robust")


@honest
def undefended_converted():
    return Honest(biotorch.convert(cnn_copy(), "backpropagation"), "not robust")


def cnn_copy():
    network = cnn()
    network.load_state_dict(plain().state_dict())
    return network.requires_grad_(True)


@honest
def undefended_bit_depth_straight_through():
    """Sixteen levels of grey, whose author gives the attack a gradient."""

    class Quantised(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = plain()

        def forward(self, images):
            return self.network(straight(lambda x: (15 * x).round() / 15, images))

    return Honest(Quantised(), "not robust")


# Robust by adversarial training ----------------------------------------------------------------------------------


@honest
def hardened_cnn():
    return Honest(hardened(), "robust")


def _hardened(network):
    torch.manual_seed(0)
    return train(network, epochs=4, epsilon=1.2 * EPSILON)


@honest
def hardened_mlp():
    return Honest(_hardened_mlp(), "robust", epsilon=0.08)


@functools.cache
def _hardened_mlp():
    torch.manual_seed(0)
    return train(mlp(), epochs=5, epsilon=EPSILON)


@honest
def hardened_smooth():
    """Tanh in place of ReLU."""
    torch.manual_seed(0)
    return Honest(_hardened(cnn(nn.Tanh)), "robust")


@honest
def hardened_ensemble():
    """The mean of two members."""

    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.members = nn.ModuleList([hardened(), _hardened_mlp()])

        def forward(self, images):
            return sum(member(images) for member in self.members) / 2

    return Honest(Mean(), "robust", epsilon=0.08)


@honest
def hardened_with_log_softmax():
    return Honest(after(hardened(), lambda outputs: F.log_softmax(outputs, 1)), "robust")


@honest
def hardened_with_large_logits():
    """Logits times three: larger, but within the precision of a float32 softmax."""
    return Honest(after(hardened(), lambda outputs: 3 * outputs), "robust")


@honest
def hardened_with_unused_class():
    """Eleven outputs, of which the last never wins nor comes second."""
    return Honest(after(hardened(), lambda outputs: F.pad(outputs, (0, 1), value=-30.0)), "robust")


@honest
def hardened_with_pooling():
    """Maxima over three by three pixels come first, so that many pixels have no gradient."""
    torch.manual_seed(0)
    doubted = "at the kinks of maxima, gradient and finite differences disagree for a fifth of the images"
    return Honest(_hardened(cnn(bottom=nn.MaxPool2d(3, 1, 1))), "robust", doubted=doubted)


@honest
def hardened_converted():
    network = cnn()
    network.load_state_dict(hardened().state_dict())
    return Honest(biotorch.convert(network.requires_grad_(True), "backpropagation"), "robust")


@honest
def hardened_with_straight_through():
    """Sixteen levels of grey before a hardened network: robust, with a gradient that is only an approximation."""

    class Quantised(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = hardened()

        def forward(self, images):
            return self.network(straight(lambda x: (15 * x).round() / 15, images))

    doubted = "outputs change in steps, which its gradient does not show"
    return Honest(Quantised(), "robust", doubted=doubted, epsilon=0.08)


@honest
def hardened_with_noise():
    """Noise on the input of a hardened network, attacked with an attack that averages over it."""

    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = hardened()

        def forward(self, images):
            return sum(self.network(images + 0.1 * torch.randn_like(images)).softmax(1) for _ in range(4)).log()

    attacks = ["random_signs", "fgsm", "pgd", {"type": "eot_pgd", "samples": 4}]
    return Honest(Noisy(), "robust", settings={"attacks": attacks, "square_queries": [1000]})


# Robust with a proof ---------------------------------------------------------------------------------------------


@honest
def linear_with_margin():
    """A linear network on images whose two classes differ in one half each; the L∞ margin is exact."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(100) % 2
    images = 0.2 + 0.2 * torch.rand(100, 1, 8, 8, generator=generator)
    images[labels == 0, :, :4] += 0.4
    images[labels == 1, :, 4:] += 0.4
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with torch.no_grad():
        network[1].weight.copy_(torch.stack([torch.ones(8, 8), torch.ones(8, 8)]).view(2, 64))
        network[1].weight[0, 32:] = network[1].weight[1, :32] = -1
        network[1].bias.zero_()
        outputs = network(images)
    gap = (outputs.gather(1, labels[:, None]) - outputs.gather(1, 1 - labels[:, None]))[:, 0]
    difference = (network[1].weight[0] - network[1].weight[1]).abs().sum()
    certified = 100 * float((gap > EPSILON * difference).float().mean())
    return Honest(network, "robust", certified, data=(images, labels))


class Lipschitz(nn.Module):
    """A network whose outputs change by no more than its input does, in L2 (each layer divided by its norm)."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(784, 200), nn.Linear(200, 200), nn.Linear(200, 10)])

    def forward(self, images):
        x = images.flatten(1)
        for index, layer in enumerate(self.layers):
            x = F.linear(x, layer.weight / torch.linalg.matrix_norm(layer.weight, 2), layer.bias)
            if index < 2:
                low, high = x[:, ::2], x[:, 1::2]
                x = torch.cat([torch.maximum(low, high), torch.minimum(low, high)], 1)
        return x


@honest
def lipschitz_in_l2():
    torch.manual_seed(0)
    radius = 0.3

    def loss(outputs, labels):
        return F.cross_entropy(20 * (outputs - 2**1.5 * radius * F.one_hot(labels, 10)), labels)

    network = train(Lipschitz(), loss=loss, epochs=4)
    images, labels = images_of(train=False)
    outputs = network(images)
    truth = F.one_hot(labels, 10).bool()
    gap = outputs[truth] - outputs.masked_fill(truth, -torch.inf).amax(1)
    certified = 100 * float((gap > 2**0.5 * radius).float().mean())
    return Honest(network, "robust", certified, epsilon=radius, settings={"norm": "l2"})


def interval_bounds(network, images, epsilon):
    """Lower and upper bounds of the outputs over the ball (Gowal et al. 2018), of linear layers and ReLUs."""
    low, high = (images - epsilon).clamp(0, 1), (images + epsilon).clamp(0, 1)
    for layer in network:
        if isinstance(layer, nn.Linear):
            middle, half = (low + high) / 2, (high - low) / 2
            middle, half = layer(middle), F.linear(half, layer.weight.abs())
            low, high = middle - half, middle + half
        else:
            low, high = layer(low), layer(high)
    return low, high


def worst_outputs(network, images, labels, epsilon):
    """Outputs with the label's at its lower bound and the others at their upper bounds."""
    low, high = interval_bounds(network, images, epsilon)
    return torch.where(F.one_hot(labels, 10).bool(), low, high)


@honest
def interval_bound_trained():
    """Trained on bounds of its outputs over the ball, which prove its robustness (Gowal et al. 2018)."""
    torch.manual_seed(0)
    network = mlp()
    images, labels = images_of(train=True)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    generator = torch.Generator().manual_seed(0)
    for epoch in range(16):
        share = min(1.0, epoch / 8)
        for index in torch.randperm(len(images), generator=generator).split(100):
            x, y = images[index], labels[index]
            worst = F.cross_entropy(worst_outputs(network, x, y, share * EPSILON), y)
            optimizer.zero_grad()
            ((1 - share / 2) * F.cross_entropy(network(x), y) + share / 2 * worst).backward()
            optimizer.step()
    network.eval().requires_grad_(False)
    images, labels = images_of(train=False)
    certified = worst_outputs(network, images, labels, EPSILON).argmax(1) == labels
    return Honest(network, "robust", 100 * float(certified.float().mean()))


@honest
def soft_nearest_neighbours():
    """Distances to the nearest of 1,000 training images per class, with their own gradient."""
    stored, labels = (each[:1000] for each in images_of(train=True))

    class Nearest(nn.Module):
        def forward(self, images):
            each = torch.cdist(images.flatten(1), stored.flatten(1))
            return -torch.stack([each[:, labels == label].amin(1) for label in range(10)], 1)

    return Honest(Nearest(), "not robust", epsilon=0.2)
