"""Fakes whose preprocessing shatters the gradient."""

from __future__ import annotations

import functools
import math

import torch
from fakes import Around, Fake, Function, Shattered
from fakes_gradients import NegatedGradient, NoiseForGradient, with_activations
from grounds import cnn, images_of, train
from torch import nn
from torch.nn import functional as F


class Quantised(Shattered):
    """Sixteen levels of grey."""

    def before(self, images):
        return (15 * images).round() / 15


class Jpeg(Shattered):
    """Blocks of four by four pixels, whose cosine transform is rounded."""

    def before(self, images):
        k = torch.arange(4.0)
        basis = torch.cos(math.pi / 4 * (k[None] + 0.5) * k[:, None]) * math.sqrt(0.5)
        basis[0] *= math.sqrt(0.5)
        blocks = images.unfold(2, 4, 4).unfold(3, 4, 4)
        rounded = ((basis @ blocks @ basis.T) * 6).round() / 6
        return (basis.T @ rounded @ basis).permute(0, 1, 2, 4, 3, 5).reshape(images.shape).clamp(0, 1)


class Staircase(Shattered):
    """A smooth staircase: flat within a hundredth of a sixteenth, where the data lie, and steep between."""

    def before(self, images):
        x = 16 * images
        whole = x.detach().round()
        return (whole + 0.5 * torch.tanh(60 * (x - whole - 0.5)) + 0.5 * torch.tanh(60 * (x - whole + 0.5))) / 16


class SaturatedInput(Around):
    """Pixels pushed through a steep sigmoid: dead where the data lie, near 0 and near 1."""

    epsilon = 0.3

    def before(self, images):
        return torch.sigmoid(200 * (images - 0.25))

    def opened(self, images):
        return self.network(torch.sigmoid(15 * (images - 0.25)))


class Thermometer(Fake):
    """Thermometer code of eight levels (Buckman et al. 2018), learned with a network of its own."""

    def __init__(self):
        super().__init__()
        self.network = coded()

    @staticmethod
    def code(images):
        return (images > torch.arange(8.0).view(1, 8, 1, 1) / 8 + 0.02).float() + 0 * images

    def forward(self, images):
        return self.network(images)

    def opened(self, images):
        levels = torch.arange(8.0).view(1, 8, 1, 1) / 8 + 0.02
        soft = torch.sigmoid(20 * (images - levels))
        (_, coder), *rest = self.network
        return nn.Sequential(coder, *rest)(soft + (self.code(images) - soft).detach())


class FlatActivations(Fake):
    """Activations in steps of a tenth."""

    def __init__(self):
        super().__init__()
        self.network = with_activations(lambda x: (10 * x.relu()).floor() / 10 + 0 * x)

    def forward(self, images):
        return self.network(images)


class WinnersTakeAll(Fake):
    """k-winners-take-all activations (Xiao et al. 2020): discontinuous at many points, so steps go astray."""

    epsilon = 0.25

    def __init__(self):
        super().__init__()
        self.network = with_winners()

    def forward(self, images):
        return self.network(images)

    def opened(self, images):
        return sum(self.network(images + 0.1 * torch.randn_like(images)) for _ in range(12))


class Distilled(Fake):
    """Defensive distillation (Papernot et al. 2016) at temperature 100: logits so large that CE has no gradient."""

    def __init__(self):
        super().__init__()
        self.network = distilled()

    def forward(self, images):
        return self.network(images)

    def opened(self, images):
        return self.network(images) / 100


class Ensemble(Fake):
    """Three defended members with different lies vote; every one of them classifies as the undefended network."""

    def __init__(self):
        super().__init__()
        self.members = nn.ModuleList([NoiseForGradient(), Quantised(), NegatedGradient()])

    def forward(self, images):
        return sum(member(images) for member in self.members) / 3


class NearestPrototype(Fake):
    """Features of the network, and the class of the nearest of 500 stored training images, as hard labels."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(*list(self.network)[:-1])
        del self.network
        images, self.labels = images_of(train=True)[0][:500], images_of(train=True)[1][:500]
        with torch.no_grad():
            self.stored = self.features(images)

    def distances(self, images):
        each = torch.cdist(self.features(images), self.stored)
        return torch.stack([each[:, self.labels == label].amin(1) for label in range(10)], 1)

    def forward(self, images):
        return F.one_hot(self.distances(images).argmin(1), 10).float() + 0 * images.sum()

    def opened(self, images):
        return -self.distances(images)


def largest_tenth(x):
    """The largest tenth of the activations of each example, the others set to zero."""
    flat = x.flatten(1)
    least = flat.topk(max(1, flat.shape[1] // 10), 1).values[:, -1:]
    return (flat * (flat >= least)).view(x.shape)


# Networks that a fake trains for itself, once.


@functools.cache
def with_winners():
    torch.manual_seed(1)
    return train(cnn(lambda: Function(largest_tenth)), epochs=6)


@functools.cache
def distilled():
    torch.manual_seed(1)
    return train(cnn(), epochs=6, rate=5e-3, loss=lambda outputs, labels: F.cross_entropy(outputs / 100, labels))


@functools.cache
def coded():
    torch.manual_seed(1)
    coder = nn.Sequential(Function(Thermometer.code), nn.Conv2d(8, 1, 1))
    return train(cnn(bottom=coder), epochs=6)
