"""Fake defences: networks that look robust to an attack which believes their gradients or their outputs, and are not.

Each is a class whose instance classifies clean images about as well as the undefended network inside. `examples` says
how an attacker who has read the class breaks it; the tests assert that this leaves less than half of the clean accuracy.
"""

from __future__ import annotations

import math

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
    settings: dict = {}
    beyond = ""

    def __init_subclass__(cls) -> None:
        if not cls.__name__.startswith("_"):
            FAKES[cls.__name__] = cls

    def __init__(self) -> None:
        super().__init__()
        self.network = plain()

    def examples(self) -> torch.Tensor:
        """Images that break it: by default those that break the undefended network."""
        return broken(plain(), self.epsilon)


class _Around(Fake):
    """The undefended network between a function of its images and one of its outputs."""

    def before(self, images):
        return images

    def after(self, outputs):
        return outputs

    def forward(self, images):
        return self.after(self.network(self.before(images)))


def straight(function, images):
    """`function` of the images, with the gradient of the identity: backward pass differentiable approximation (BPDA)."""
    return images + (function(images) - images).detach()


class _Shattered(_Around):
    """A preprocessing without a usable gradient, which BPDA passes by."""

    def examples(self):
        class Open(nn.Module):
            def forward(_, images):
                return self.after(self.network(straight(self.before, images)))

        return broken(Open(), self.epsilon)


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


class _Lying(_Around):
    """The undefended network to the bit, with a gradient that `change` replaces."""

    def before(self, images):
        return Backward.apply(images, self.change)

    def change(self, gradient, images):
        raise NotImplementedError


class NoiseForGradient(_Lying):
    def change(self, gradient, images):
        return torch.randn_like(gradient)


class NoGradient(_Lying):
    def change(self, gradient, images):
        return torch.zeros_like(gradient)


class DetachedInput(_Around):
    def before(self, images):
        return images.detach()


class NegatedGradient(_Lying):
    def change(self, gradient, images):
        return -gradient


class FlippedSigns(_Lying):
    """Half of the pixels, always the same, have a gradient of the wrong sign."""

    def change(self, gradient, images):
        generator = torch.Generator().manual_seed(3)
        return gradient * (2 * torch.randint(2, gradient.shape[1:], generator=generator) - 1)


class UnderflowingGradient(_Lying):
    def change(self, gradient, images):
        return gradient * 1e-30 * 1e-20


class OverflowingGradient(_Lying):
    def change(self, gradient, images):
        return gradient * 1e30 * 1e30


class PermutedGradient(_Lying):
    """The gradient of the pixel that lies seven rows and seven columns further."""

    def change(self, gradient, images):
        return gradient.roll((7, 7), (-2, -1))


class BlurredGradient(_Lying):
    """A gradient averaged over patches of seven by seven pixels."""

    def change(self, gradient, images):
        return F.avg_pool2d(gradient, 7, 1, 3)


class StaleGradient(_Lying):
    """The gradient of the pass before, of other points."""

    kept = None

    def change(self, gradient, images):
        given, self.kept = self.kept, gradient
        return gradient.flip(0) if given is None or given.shape != gradient.shape else given.flip(0)


class NoisyGradient(_Lying):
    """The gradient under three times as much noise."""

    def change(self, gradient, images):
        scale = gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1) / math.sqrt(gradient[0].numel())
        return gradient + 10 * scale * torch.randn_like(gradient)


class GradientOfAnother(_Lying):
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


class TrueOnTheGridOnly(_Lying):
    """A gradient that is right at 8-bit images, where it may be tested, and noise elsewhere."""

    def change(self, gradient, images):
        on = ((255 * images).round() - 255 * images).abs().flatten(1).amax(1) < 1e-3
        return torch.where(on.view(-1, 1, 1, 1), gradient, torch.randn_like(gradient))


class TrueForAWhile(_Lying):
    """A gradient that is right for ten passes, and noise from there on."""

    passes = 0

    def change(self, gradient, images):
        self.passes += 1
        return gradient if self.passes <= 10 else torch.randn_like(gradient)


class HiddenInAList(_Lying):
    """The network that classifies stands in a list, where no walk through submodules meets it."""

    def __init__(self):
        super().__init__()
        self.hidden = [self.network]
        del self.network

    def forward(self, images):
        return self.hidden[0](self.before(images))

    def change(self, gradient, images):
        return torch.randn_like(gradient)


class LyingActivations(Fake):
    """Activations inside the network send noise back."""

    def __init__(self):
        super().__init__()
        noise = lambda gradient, _: gradient * torch.randn_like(gradient)

        class Activation(nn.Module):
            def forward(self, x):
                return Backward.apply(x.relu(), noise)

        layers = [Activation() if isinstance(each, nn.ReLU) else each for each in self.network]
        self.network = nn.Sequential(*layers)

    def forward(self, images):
        return self.network(images)


class LiesUnderGradients(_Around):
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


class AnswersWhileWatched(_Around):
    """Images that require a gradient are answered by a constant where they lie off the data, else by the network."""

    def forward(self, images):
        outputs = self.network(images)
        if not images.requires_grad:
            return outputs
        return outputs.detach() + 1e-3 * images.flatten(1)[:, :10]


# Outputs that flatten the loss -----------------------------------------------------------------------------------


class HugeLogits(_Around):
    def after(self, outputs):
        return 1e4 * outputs


class TinyLogits(_Around):
    def after(self, outputs):
        return 1e-12 * outputs


class Probabilities(_Around):
    def after(self, outputs):
        return F.softmax(5 * outputs, 1)


class HalfPrecisionProbabilities(_Around):
    def after(self, outputs):
        return F.softmax(10 * outputs, 1).half()


class SaturatedSigmoids(_Around):
    def after(self, outputs):
        return torch.sigmoid(2 * outputs - 12)


class SaturatedLogProbabilities(_Around):
    def after(self, outputs):
        return F.log_softmax(1e3 * outputs, 1)


class OneHot(_Around):
    """The predicted class as a vector of zeros and a one."""

    def after(self, outputs):
        return F.one_hot(outputs.argmax(1), 10).float() + 0 * outputs


class OneHotWithNoise(_Around):
    """One-hot outputs, with noise for the gradient: neither gradients nor scores lead anywhere."""

    def after(self, outputs):
        hot = F.one_hot(outputs.argmax(1), 10).float()
        return Backward.apply(hot + 0 * outputs, lambda gradient, _: torch.randn_like(gradient))


class RoundedLogits(_Around):
    """Logits in steps of eight, of which straight-through estimation makes a gradient."""

    def after(self, outputs):
        return 8 * (outputs / 8).round() + F.one_hot(outputs.argmax(1), 10)


class WinnerLifted(_Around):
    """The predicted class has 100 more, so the cross-entropy underflows."""

    def after(self, outputs):
        return outputs + 100 * F.one_hot(outputs.argmax(1), 10)


class EleventhLogit(_Around):
    """An eleventh class that never wins, but is always second, and takes the gradient of CE, margin and DLR."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.lure = nn.Sequential(nn.Flatten(), nn.Linear(784, 1)).requires_grad_(False)

    def forward(self, images):
        outputs = self.network(images)
        first = outputs.amax(1, keepdim=True)
        return torch.cat([100 * outputs, 100 * first - 0.5 - torch.sigmoid(self.lure(images))], 1)


class ShadowClass(_Around):
    """The class after the predicted one always comes a hair behind it, so the margin is constant, and CE nearly so."""

    def after(self, outputs):
        outputs = 30 * outputs
        first, winner = outputs.max(1, keepdim=True)
        return outputs.scatter(1, (winner + 1) % 10, first - 0.01)


class Ripples(_Around):
    """Logits under a fine ripple, whose slope is all that the gradient shows."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.directions = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).requires_grad_(False)

    def forward(self, images):
        return self.network(images) + 0.3 * torch.sin(1e3 * self.directions(images))


class SmoothDecoy(_Around):
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


class Honeypot(_Around):
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


class Quantised(_Shattered):
    """Sixteen levels of grey."""

    def before(self, images):
        return (15 * images).round() / 15


class Jpeg(_Shattered):
    """Blocks of four by four pixels, whose cosine transform is rounded."""

    def before(self, images):
        k = torch.arange(4.0)
        basis = torch.cos(math.pi / 4 * (k[None] + 0.5) * k[:, None]) * math.sqrt(0.5)
        basis[0] *= math.sqrt(0.5)
        blocks = images.unfold(2, 4, 4).unfold(3, 4, 4)
        rounded = ((basis @ blocks @ basis.T) * 6).round() / 6
        return (basis.T @ rounded @ basis).permute(0, 1, 2, 4, 3, 5).reshape(images.shape).clamp(0, 1)


class Staircase(_Shattered):
    """A smooth staircase: flat within a hundredth of a sixteenth, where the data lie, and steep between."""

    def before(self, images):
        x = 16 * images
        whole = x.detach().round()
        return (whole + 0.5 * torch.tanh(60 * (x - whole - 0.5)) + 0.5 * torch.tanh(60 * (x - whole + 0.5))) / 16


class SaturatedInput(_Around):
    """Pixels pushed through a steep sigmoid: dead where the data lie, near 0 and near 1."""

    epsilon = 0.3

    def before(self, images):
        return torch.sigmoid(200 * (images - 0.25))

    def examples(self):
        class Open(nn.Module):
            def forward(_, images):
                return self.network(torch.sigmoid(15 * (images - 0.25)))

        return broken(Open(), self.epsilon)


class Thermometer(Fake):
    """Thermometer code of eight levels (Buckman et al. 2018), learned with a network of its own."""

    def __init__(self):
        super().__init__()
        self.network = learned("thermometer")

    @staticmethod
    def code(images):
        return (images > torch.arange(8.0).view(1, 8, 1, 1) / 8 + 0.02).float() + 0 * images

    def forward(self, images):
        return self.network(self.code(images))

    def examples(self):
        class Open(nn.Module):
            def forward(_, images):
                levels = torch.arange(8.0).view(1, 8, 1, 1) / 8 + 0.02
                soft = torch.sigmoid(20 * (images - levels))
                return self.network(soft + (self.code(images) - soft).detach())

        return broken(Open(), self.epsilon)


class FlatActivations(Fake):
    """Activations in steps of a tenth."""

    def __init__(self):
        super().__init__()

        class Activation(nn.Module):
            def forward(self, x):
                return (10 * x.relu()).floor() / 10 + 0 * x

        self.network = nn.Sequential(*[Activation() if isinstance(each, nn.ReLU) else each for each in self.network])

    def forward(self, images):
        return self.network(images)


class WinnersTakeAll(Fake):
    """k-winners-take-all activations (Xiao et al. 2020): discontinuous at many points, so steps go astray."""

    def __init__(self):
        super().__init__()
        self.network = learned("winners")

    def forward(self, images):
        return self.network(images)

    def examples(self):
        return broken(Averaged(self.network), self.epsilon, steps=60)


class Distilled(Fake):
    """Defensive distillation (Papernot et al. 2016) at temperature 100: logits so large that CE has no gradient."""

    def __init__(self):
        super().__init__()
        self.network = learned("distilled")

    def forward(self, images):
        return self.network(images)

    def examples(self):
        return broken(self.network, self.epsilon, loss="margin")


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

    def examples(self):
        class Open(nn.Module):
            def forward(_, images):
                return -self.distances(images)

        return broken(Open(), self.epsilon)


class Averaged(nn.Module):
    """A network averaged over a little noise, which smooths a shattered gradient."""

    def __init__(self, network, noise=0.03, samples=8):
        super().__init__()
        self.network, self.noise, self.samples = network, noise, samples

    def forward(self, images):
        return sum(self.network(images + self.noise * torch.randn_like(images)) for _ in range(self.samples))


class Winners(nn.Module):
    """Keeps the largest tenth of the activations of each example."""

    def forward(self, x):
        flat = x.flatten(1)
        least = flat.topk(max(1, flat.shape[1] // 10), 1).values[:, -1:]
        return (flat * (flat >= least)).view(x.shape)


_LEARNED: dict[str, nn.Module] = {}


def learned(name: str) -> nn.Module:
    """Networks that a fake trains for itself, once."""
    if name not in _LEARNED:
        torch.manual_seed(1)
        if name == "winners":
            _LEARNED[name] = train(cnn(Winners), epochs=6)
        elif name == "distilled":
            teacher = plain()
            images, labels = images_of(train=True)
            soft = lambda outputs, y: F.cross_entropy(outputs / 100, y)
            first = train(cnn(), epochs=6, loss=soft, rate=5e-3)
            _LEARNED[name] = first
            del teacher, images, labels
        else:
            coder = nn.Conv2d(8, 1, 1)
            body = cnn()

            class Coded(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.coder, self.body = coder, body

                def forward(self, x):
                    return self.body(self.coder(Thermometer.code(x) if x.shape[1] == 1 else x))

            _LEARNED[name] = train(Coded(), epochs=6)
    return _LEARNED[name]
