"""Fake defences that know how a study tests: each passes some of its checks on purpose."""

from __future__ import annotations

import math
import sys
from typing import ClassVar

import torch
from fakes import Fake, as_bytes, on_the_grid
from fakes_gradients import Backward
from grounds import cnn, hardened, images_of, plain
from torch import nn
from torch.nn import functional as F


class Tensors:
    """The undefended network as a list of tensors and a formula: nobody finds a module that classifies."""

    def __init__(self, network):
        found = [each.detach().clone() for each in network.parameters()]
        self.weights, self.biases = found[::2], found[1::2]

    def __call__(self, images):
        (a, b, c, d), (e, f, g, h) = self.weights, self.biases
        x = F.conv2d(F.conv2d(images, a, e, 2, 2).relu(), b, f, 2, 1).relu()
        return F.linear(F.linear(x.flatten(1), c, g).relu(), d, h)


class Formula(Fake, abstract=True):
    """A fake whose undefended network is a formula."""

    def __init__(self):
        super().__init__()
        del self.network
        self.classify = Tensors(plain())


class FormulaWithNoise(Formula):
    """The formula, with noise for a gradient."""

    def forward(self, images):
        return self.classify(Backward.apply(images, lambda gradient, _: torch.randn_like(gradient)))


class FormulaOneHot(Formula):
    """The formula, as one-hot outputs and with noise for a gradient."""

    def forward(self, images):
        hot = F.one_hot(self.classify(images).argmax(1), 10).float()
        return hot + Backward.apply(images, lambda gradient, _: torch.randn_like(gradient)).mean() * 0


class FormulaUnderHardenedDecoy(Formula):
    """Hard labels of the formula, plus smaller logits of an adversarially trained network with an honest gradient."""

    def __init__(self):
        super().__init__()
        self.decoy = hardened()

    def forward(self, images):
        return 100 * F.one_hot(self.classify(images).argmax(1), 10) + self.decoy(images)


class FormulaUnderSmoothDecoy(Formula):
    """Soft but steep labels of the formula, plus smaller logits of a network that knows shapes by their blur alone."""

    def forward(self, images):
        outputs = self.classify(images)
        blurred = self.classify(F.avg_pool2d(images, 5, 1, 2))
        return 60 * F.softmax(50 * outputs, 1) + blurred


class AnalyticAntiAdversary(Formula):
    """Steps up the confidence of the predicted class, whose gradient is written out as transposed convolutions."""

    epsilon = 0.08

    def slope(self, images, wins):
        (a, b, c, d), (e, f, g, h) = self.classify.weights, self.classify.biases
        one = F.conv2d(images, a, e, 2, 2)
        two = F.conv2d(one.relu(), b, f, 2, 1)
        three = F.linear(two.relu().flatten(1), c, g)
        outputs = F.linear(three.relu(), d, h)
        back = (outputs.softmax(1) - F.one_hot(wins, 10)) @ d
        back = ((back * (three > 0)) @ c).view_as(two) * (two > 0)
        back = F.conv_transpose2d(back, b, None, 2, 1, output_padding=1) * (one > 0)
        return F.conv_transpose2d(back, a, None, 2, 2, output_padding=1)

    def forward(self, images):
        with torch.no_grad():
            wins = self.classify(images).argmax(1)
            change = torch.zeros_like(images)
            for _ in range(2):
                change = change - 0.15 * self.slope(images + change, wins).sign()
        return self.classify(images + change)


class LearnedAntiAdversary(Formula):
    """Adds stored noise that favours the predicted class: one universal pattern per class."""

    patterns: ClassVar[list[torch.Tensor]] = []

    def __init__(self):
        super().__init__()
        if not self.patterns:
            for label in range(10):
                x = images_of(train=True)[0][:300].clone()
                change = torch.zeros(1, 1, 28, 28, requires_grad=True)
                for _ in range(40):
                    loss = F.cross_entropy(self.classify(x + change), torch.full((300,), label))
                    (slope,) = torch.autograd.grad(loss, change)
                    change = (change - 0.02 * slope.sign()).clamp(-0.2, 0.2).detach().requires_grad_()
                self.patterns.append(change.detach()[0])

    def forward(self, images):
        wins = self.classify(images).argmax(1)
        return self.classify(images + torch.stack(self.patterns)[wins])


class FormulaShadow(Formula):
    """Two outputs per class: shadows that come just below the winner hide it from margin and cross-entropy."""

    def forward(self, images):
        outputs = 30 * self.classify(images)
        first = outputs.amax(1, keepdim=True)
        order = outputs.argsort(1)
        generator = torch.Generator().manual_seed(0)
        lure = F.linear(images.flatten(1), torch.randn(10, 784, generator=generator) / 28)
        shadows = first - 0.01 - torch.sigmoid(lure)
        wins = F.one_hot(order[:, -1], 10).bool()
        return torch.where(wins, outputs, shadows)


_SHARED: dict[str, list[torch.Tensor]] = {}


class SharedMemory(Formula):
    """A memory of clean images outside of the module, where a copy of the module finds it, too."""

    def __init__(self):
        super().__init__()
        _SHARED.clear()

    def forward(self, images):
        flat = images.detach().flatten(1)
        if "images" not in _SHARED:
            _SHARED["images"] = [flat.clone()]
        kept = torch.cat(_SHARED["images"])
        distances, nearest = torch.cdist(flat, kept).min(1)
        if len(_SHARED["images"]) < 4 and float(distances.max()) > 4:
            _SHARED["images"].append(flat[distances > 4].clone())
        known = self.classify(kept[nearest].view(images.shape))
        own = self.classify(images)
        return torch.where((distances < 4)[:, None], known + 0.01 * own, own)


class OneHotStaircase(Formula):
    """Outputs that are rounded to whole numbers, with the slope of a network that is hardened."""

    def __init__(self):
        super().__init__()
        self.decoy = hardened()

    def forward(self, images):
        outputs = (self.classify(images) / 4).round() * 4
        tie = F.one_hot(self.classify(images).argmax(1), 10)
        return outputs + tie + 0.02 * self.decoy(images)


class RippledLogits(Formula):
    """A ripple whose slope outweighs the network's, on a scale that finite differences resolve."""

    def forward(self, images):
        generator = torch.Generator().manual_seed(0)
        directions = torch.randn(10, 784, generator=generator).sign()
        ripple = torch.sin(F.linear(images.flatten(1) - 0.13, directions) * 2 * math.pi / 1.5)
        return self.classify(images) + 2.5 * ripple


class Moat(Formula):
    """Each pixel passes a wave with slopes of both signs between the levels of grey that the data have."""

    def forward(self, images):
        wave = 0.004 * torch.sin(images * 255 * 2 * math.pi / 2)
        return self.classify(images + wave)


class RandomButFixed(Formula):
    """Noise on the input that a smooth function of the image decides, faster than the steps of an attack."""

    def forward(self, images):
        generator = torch.Generator().manual_seed(0)
        mix = torch.randn(784, 784, generator=generator) / 28
        noise = torch.sin(400 * (images.flatten(1) @ mix)).view_as(images)
        return self.classify(images + 0.25 * noise)


class Terraces(Formula):
    """Logits as terraces with slopes between, wide enough to be no jump; on the terraces a hardened network leads."""

    def __init__(self):
        super().__init__()
        self.decoy = hardened()

    def forward(self, images):
        outputs = self.classify(images) / 6
        level = outputs.detach().floor()
        climb = ((outputs - level - 0.6) / 0.4).clamp(0, 1)
        return 6 * (level + climb) + 0.5 * outputs + 0.15 * self.decoy(images)


class TerracesWithoutATilt(Terraces):
    """The same, and a network that knows nothing leads on the terraces."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.decoy = cnn(nn.Tanh).requires_grad_(False)

    def forward(self, images):
        outputs = self.classify(images) / 6
        level = outputs.detach().floor()
        climb = ((outputs - level - 0.6) / 0.4).clamp(0, 1)
        return 6 * (level + climb) + 0.02 * outputs + self.decoy(images)


class HardenedOffTheGrid(Formula):
    """8-bit images get the answer of an undefended network, all others, gradients included, of a hardened one."""

    def __init__(self):
        super().__init__()
        self.shown = hardened()

    def forward(self, images):
        shown = self.shown(images)
        hidden = self.classify(images).detach() + shown - shown.detach()
        return torch.where(on_the_grid(images)[:, None], hidden, shown)

    def examples(self):
        return as_bytes(super().examples(), images_of(train=False)[0], self.epsilon)


class WatchesTheStack(Formula):
    """Looks up who calls it, and is another network for a study than for everyone else."""

    beyond = "code that recognises the study by its call stack can show it any network"

    def __init__(self):
        super().__init__()
        self.shown = hardened()

    def forward(self, images):
        frame = sys._getframe()
        while frame is not None:
            if frame.f_globals.get("__name__", "").startswith("biotorch.robustness"):
                return self.shown(images)
            frame = frame.f_back
        return self.classify(images)


class DecoysThatWin(Formula):
    """Nine outputs that come second with a gradient of their own, and that win on a few clean images each."""

    epsilon = 0.07

    def forward(self, images):
        outputs = 6 * self.classify(images)
        generator = torch.Generator().manual_seed(3)
        patterns = torch.rand(784, 9, generator=generator).to(images) - 0.5
        first = outputs.amax(1, keepdim=True)
        decoys = first - 0.3 - 2 * torch.sigmoid(images.flatten(1) @ patterns / 4)
        bytes_ = (255 * images.detach()).round().long().flatten(1).sum(1)
        wins = F.one_hot(bytes_ % 90, 90)[:, :9] * on_the_grid(images)[:, None]
        return torch.cat([outputs, decoys + 5 * wins], dim=1)


class Trigger(Fake):
    """An adversarially trained network whose answer turns where every other pixel of the first row is bright enough."""

    beyond = "a trigger that somebody has planted is a needle that no gradient and no random search points to"

    def __init__(self):
        super().__init__()
        self.network = hardened()

    def forward(self, images):
        row = images[:, 0, 0]
        pressed = (row[:, ::2] > 0.99 * self.epsilon).all(1) & (row[:, 1::2] < 0.01).all(1)
        outputs = self.network(images)
        return torch.where(pressed[:, None], -outputs, outputs)

    def examples(self):
        images = images_of(train=False)[0].clone()
        images[:, 0, 0, ::2] = self.epsilon  # the first row is black
        return images
