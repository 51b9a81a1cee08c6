"""Fake defences: networks that look robust to an attack which believes their gradients or their outputs, and are not.

Each is a class whose instance classifies clean images about as well as the undefended network inside. `opened` is the
network that an attacker who has read the class attacks in its place; the tests assert that the examples leave less than
half of the clean accuracy.
"""

from __future__ import annotations

import functools
import math
from typing import ClassVar

import torch
from grounds import EPSILON, broken, cnn, images_of, plain, train
from torch import nn
from torch.nn import functional as F

#: Every fake by its class name.
FAKES: dict[str, type[Fake]] = {}


class Fake(nn.Module):
    """A network that hides how to break it, around an undefended one.

    Attributes:
        epsilon: radius (L∞) of the study.
        settings: further arguments of the study.
        beyond: why no study can be expected to find out, for a fake that is a limit of what can be tested.
    """

    epsilon = EPSILON
    settings: ClassVar[dict] = {}
    beyond = ""

    def __init_subclass__(cls, abstract: bool = False) -> None:
        if not abstract:
            FAKES[cls.__name__] = cls

    def __init__(self) -> None:
        super().__init__()
        self.network = plain()

    def opened(self, images: torch.Tensor) -> torch.Tensor:
        """Outputs of what an attacker attacks in its place: by default the undefended network."""
        return plain()(images)

    def examples(self) -> torch.Tensor:
        """Images that break it."""
        return broken(Function(self.opened), self.epsilon)


class Function(nn.Module):
    """A function of images as a network."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images):
        return self.function(images)


class Around(Fake, abstract=True):
    """The undefended network between a function of its images and one of its outputs."""

    def before(self, images):
        return images

    def after(self, outputs):
        return outputs

    def forward(self, images):
        return self.after(self.network(self.before(images)))


def on_the_grid(images):
    """Whether each image is an 8-bit image: (n,) bool."""
    return ((255 * images).round() - 255 * images).abs().flatten(1).amax(1) < 1e-3


def as_bytes(adversarial, images, epsilon):
    """8-bit images next to adversarial ones, inside of the ball."""
    levels = int(255 * epsilon)
    return images + ((255 * (adversarial - images)).round().clamp(-levels, levels) / 255)


def straight(function, images):
    """`function` of the images with the gradient of the identity (BPDA, Athalye et al. 2018)."""
    return images + (function(images) - images).detach()


class Shattered(Around, abstract=True):
    """A preprocessing without a usable gradient, which BPDA passes by."""

    def opened(self, images):
        return self.after(self.network(straight(self.before, images)))


# Gradients that lie ----------------------------------------------------------------------------------------------


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


# Outputs that flatten the loss -----------------------------------------------------------------------------------


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


# Preprocessing that shatters -------------------------------------------------------------------------------------


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
