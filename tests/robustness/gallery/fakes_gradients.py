"""Fakes whose gradients lie."""

from __future__ import annotations

import math

import torch
from fakes import Around, Fake, Function, on_the_grid
from grounds import cnn, plain
from torch import nn
from torch.nn import functional as F


class Backward(torch.autograd.Function):
    """The identity, with a function of the gradient and of the images for its backward pass."""

    @staticmethod
    def forward(ctx, images, change):
        ctx.change = change
        ctx.save_for_backward(images)
        return images.clone()

    @staticmethod
    def backward(ctx, gradient):
        return ctx.change(gradient, ctx.saved_tensors[0]), None


class Lying(Around, abstract=True):
    """The undefended network to the bit, with a gradient that `change` replaces."""

    def before(self, images):
        return Backward.apply(images, self.change)

    def change(self, gradient, images):
        raise NotImplementedError


class NoiseForGradient(Lying):
    def change(self, gradient, images):
        return torch.randn_like(gradient)


class NoGradient(Lying):
    def change(self, gradient, images):
        return torch.zeros_like(gradient)


class DetachedInput(Around):
    def before(self, images):
        return images.detach()


class NegatedGradient(Lying):
    def change(self, gradient, images):
        return -gradient


class FlippedSigns(Lying):
    """Half of the pixels, always the same, have a gradient of the wrong sign."""

    def change(self, gradient, images):
        generator = torch.Generator().manual_seed(3)
        return gradient * (2 * torch.randint(2, gradient.shape[1:], generator=generator) - 1)


class UnderflowingGradient(Lying):
    def change(self, gradient, images):
        return gradient * 1e-30 * 1e-20


class OverflowingGradient(Lying):
    def change(self, gradient, images):
        return gradient * 1e30 * 1e30


class PermutedGradient(Lying):
    """The gradient of the pixel that lies seven rows and seven columns further."""

    def change(self, gradient, images):
        return gradient.roll((7, 7), (-2, -1))


class BlurredGradient(Lying):
    """A gradient averaged over patches of seven by seven pixels."""

    def change(self, gradient, images):
        return F.avg_pool2d(gradient, 7, 1, 3)


class StaleGradient(Lying):
    """The gradient of the pass before, of other points."""

    kept = None

    def change(self, gradient, images):
        given, self.kept = self.kept, gradient
        return gradient.flip(0) if given is None or given.shape != gradient.shape else given.flip(0)


class NoisyGradient(Lying):
    """The gradient under three times as much noise."""

    def change(self, gradient, images):
        scale = gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1) / math.sqrt(gradient[0].numel())
        return gradient + 10 * scale * torch.randn_like(gradient)


class GradientOfAnother(Lying):
    """The gradient of a network that knows nothing."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.other = cnn().requires_grad_(False)

    def change(self, gradient, images):
        with torch.enable_grad():
            points = images.detach().requires_grad_()
            outputs = self.other(points)
            return torch.autograd.grad(F.cross_entropy(outputs, outputs.argmax(1), reduction="sum"), points)[0]


class TrueOnTheGridOnly(Lying):
    """A gradient that is right at 8-bit images, where it may be tested, and noise elsewhere."""

    def change(self, gradient, images):
        return torch.where(on_the_grid(images).view(-1, 1, 1, 1), gradient, torch.randn_like(gradient))


class TrueForAWhile(Lying):
    """A gradient that is right for ten passes, and noise from there on."""

    passes = 0

    def change(self, gradient, images):
        self.passes += 1
        return gradient if self.passes <= 10 else torch.randn_like(gradient)


class HiddenInAList(Lying):
    """The network that classifies stands in a list, where no walk through submodules meets it."""

    def __init__(self):
        super().__init__()
        self.hidden = [self.network]
        del self.network

    def forward(self, images):
        return self.hidden[0](self.before(images))

    def change(self, gradient, images):
        return torch.randn_like(gradient)


def times_noise(gradient, _):
    return gradient * torch.randn_like(gradient)


def with_activations(function):
    """The undefended network with another function in place of each ReLU."""
    return nn.Sequential(*[Function(function) if isinstance(each, nn.ReLU) else each for each in plain()])


class LyingActivations(Fake):
    """Activations inside the network send noise back."""

    def __init__(self):
        super().__init__()
        self.network = with_activations(lambda x: Backward.apply(x.relu(), times_noise))

    def forward(self, images):
        return self.network(images)


class LiesUnderGradients(Around):
    """With gradients enabled it answers as a network that knows nothing, without as itself."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.other = cnn().requires_grad_(False)

    def forward(self, images):
        outputs = self.network(images)
        if not torch.is_grad_enabled():
            return outputs
        return outputs.detach() + self.other(images) - self.other(images).detach()


class AnswersWhileWatched(Around):
    """Images that require a gradient are answered by a constant where they lie off the data, else by the network."""

    def forward(self, images):
        outputs = self.network(images)
        if not images.requires_grad:
            return outputs
        return outputs.detach() + 1e-3 * images.flatten(1)[:, :10]
