"""Fakes whose outputs flatten the loss."""

from __future__ import annotations

import torch
from fakes import Around
from fakes_gradients import Backward
from grounds import cnn
from torch import nn
from torch.nn import functional as F


class HugeLogits(Around):
    def after(self, outputs):
        return 1e4 * outputs


class TinyLogits(Around):
    def after(self, outputs):
        return 1e-12 * outputs


class Probabilities(Around):
    def after(self, outputs):
        return F.softmax(5 * outputs, 1)


class HalfPrecisionProbabilities(Around):
    def after(self, outputs):
        return F.softmax(10 * outputs, 1).half()


class SaturatedSigmoids(Around):
    def after(self, outputs):
        return torch.sigmoid(2 * outputs - 12)


class SaturatedLogProbabilities(Around):
    def after(self, outputs):
        return F.log_softmax(1e3 * outputs, 1)


class OneHot(Around):
    """The predicted class as a vector of zeros and a one."""

    def after(self, outputs):
        return F.one_hot(outputs.argmax(1), 10).float() + 0 * outputs


class OneHotWithNoise(Around):
    """One-hot outputs, with noise for the gradient: neither gradients nor scores lead anywhere."""

    def after(self, outputs):
        hot = F.one_hot(outputs.argmax(1), 10).float()
        return Backward.apply(hot + 0 * outputs, lambda gradient, _: torch.randn_like(gradient))


class RoundedLogits(Around):
    """Logits in steps of eight, of which straight-through estimation makes a gradient."""

    def after(self, outputs):
        return 8 * (outputs / 8).round() + F.one_hot(outputs.argmax(1), 10)


class WinnerLifted(Around):
    """The predicted class has 100 more, so the cross-entropy underflows."""

    def after(self, outputs):
        return outputs + 100 * F.one_hot(outputs.argmax(1), 10)


class EleventhLogit(Around):
    """An eleventh class that never wins, but is always second, and takes the gradient of CE, margin and DLR."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.lure = nn.Sequential(nn.Flatten(), nn.Linear(784, 1)).requires_grad_(False)

    def forward(self, images):
        outputs = self.network(images)
        first = outputs.amax(1, keepdim=True)
        return torch.cat([100 * outputs, 100 * first - 0.5 - torch.sigmoid(self.lure(images))], 1)


class ShadowClass(Around):
    """The class after the predicted one always comes a hair behind it, so the margin is constant, and CE nearly so."""

    def after(self, outputs):
        outputs = 30 * outputs
        first, winner = outputs.max(1, keepdim=True)
        return outputs.scatter(1, (winner + 1) % 10, first - 0.01)


class Ripples(Around):
    """Logits under a fine ripple, whose slope is all that the gradient shows."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.directions = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).requires_grad_(False)

    def forward(self, images):
        return self.network(images) + 0.3 * torch.sin(1e3 * self.directions(images))


class SmoothDecoy(Around):
    """Hard labels, plus a smaller term that is smooth and whose gradient is honest, of a network that knows nothing."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.decoy = cnn(nn.Tanh).requires_grad_(False)

    def forward(self, images):
        return 10 * F.one_hot(self.network(images).argmax(1), 10) + torch.tanh(3 * self.decoy(images))


class HiddenSmoothDecoy(SmoothDecoy):
    """The same, and the network that classifies stands in a list."""

    def __init__(self):
        super().__init__()
        self.hidden = [self.network]
        del self.network

    def forward(self, images):
        return 10 * F.one_hot(self.hidden[0](images).argmax(1), 10) + torch.tanh(3 * self.decoy(images))


class Honeypot(Around):
    """Each class has a lure in its logit: a direction that promises more of the class and saturates too early."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.lures = nn.Sequential(nn.Flatten(), nn.Linear(784, 10, bias=False)).requires_grad_(False)

    def forward(self, images):
        outputs = self.network(images)
        wins = outputs.argmax(1, keepdim=True)
        lure = 0.9 * torch.tanh(20 * self.lures(images))
        gap = (outputs.gather(1, wins) - outputs).detach()
        return 10 * (outputs + (0.5 + 0.5 * lure) * gap)
