"""Fake defences that move: noise at test time, memories of earlier images, and purification of every image."""

from __future__ import annotations

import functools
from typing import ClassVar

import torch
from fakes import Around, Fake, Shattered, as_bytes, on_the_grid, straight
from fakes_gradients import Lying
from grounds import images_of, plain
from torch import nn
from torch.nn import functional as F

# Noise ---------------------------------------------------------------------------------------------------------------


class Noisy(Around, abstract=True):
    """Randomness at test time, over which an attacker averages."""

    def opened(self, images):
        return sum(self(images) for _ in range(12)) / 12


class NoisyInput(Noisy):
    def before(self, images):
        return images + 0.2 * torch.randn_like(images)


class NoisyLogits(Noisy):
    def after(self, outputs):
        return outputs + torch.randn_like(outputs)


class RandomCrop(Noisy):
    """A random shift, and a random size between nine and eleven tenths (Xie et al. 2018)."""

    def before(self, images):
        n = len(images)
        theta = torch.zeros(n, 2, 3)
        theta[:, 0, 0] = theta[:, 1, 1] = 1 + 0.2 * (torch.rand(n) - 0.5)
        theta[:, :, 2] = 0.2 * (torch.rand(n, 2) - 0.5)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, align_corners=False)


def seeds(images):
    """A number per image from its bits."""
    return ((images.detach().flatten(1).double() * 1e6).round().long() * torch.arange(1, images[0].numel() + 1)).sum(1)


def noise_of(images, scale):
    """Noise that the bits of each image decide, so that the network is deterministic."""
    each = [
        torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(int(s) % 2**31)) for s in seeds(images)
    ]
    return scale * torch.stack(each)


class NoiseFromBits(Around):
    """Noise whose seed is the image itself: deterministic, and without a gradient that means anything."""

    def before(self, images):
        return images + noise_of(images, 0.25)

    def opened(self, images):
        return sum(self.network(images + 0.25 * torch.randn_like(images)) for _ in range(8)) / 8


class DropoutFromBits(NoiseFromBits):
    """Drops a third of the pixels, which the image's bits decide."""

    def before(self, images):
        return images * (noise_of(images, 1.0) > -0.43)


class NoiseOffTheGrid(Around):
    """Noise in the logits of every image that is no 8-bit image."""

    def forward(self, images):
        off = ~on_the_grid(images)
        outputs = self.network(images)
        return outputs + off[:, None] * 6 * torch.randn_like(outputs)

    def examples(self):
        return as_bytes(super().examples(), images_of(train=False)[0], self.epsilon)


class DependsOnTheBatch(Around):
    """Logits from which the mean over the batch is taken, and to which the order of the batch adds."""

    def forward(self, images):
        outputs = self.network(images)
        if len(images) < 2:
            return outputs
        return outputs + 8 * (outputs.roll(1, 0).softmax(1) - 0.1).detach() * (images.std((1, 2, 3)) > 0)[:, None] * (
            0.4 if not images.requires_grad else 1
        )


class BatchStatistics(Fake):
    """Batch normalisation of the outputs, with the statistics of the batch in eval mode, too."""

    def forward(self, images):
        outputs = self.network(images)
        return outputs if len(images) < 2 else 3 * (outputs - outputs.mean(0)) / (outputs.std(0) + 0.1)


class RandomMember(Noisy):
    """One of three undefended networks, drawn at every pass."""

    def __init__(self):
        super().__init__()
        self.members = nn.ModuleList([plain(seed) for seed in (0, 1, 2)])

    def forward(self, images):
        return self.members[int(torch.randint(3, ()))](images)


class Voting(Around):
    """Hard votes of 16 noisy copies: counts, which have no gradient."""

    def forward(self, images):
        votes = [self.network(images + 0.15 * torch.randn_like(images)).argmax(1) for _ in range(16)]
        return sum(F.one_hot(each, 10) for each in votes).float() + 0 * images.sum()

    def opened(self, images):
        return sum(self.network(images + 0.15 * torch.randn_like(images)).softmax(1) for _ in range(8)).log()


# Memory --------------------------------------------------------------------------------------------------------------


class Memory(Around):
    """Stores every batch that it first sees, and classifies the stored image nearest to each later one."""

    def __init__(self):
        super().__init__()
        self.stored = []

    def forward(self, images):
        if len(self.stored) < 2:
            self.stored.append(images.detach().clone())
            return self.network(images)
        kept = torch.cat(self.stored)
        nearest = torch.cdist(images.detach().flatten(1), kept.flatten(1)).argmin(1)
        return self.network(straight(lambda _: kept[nearest], images))


class RepeatedAnswers(Lying):
    """Gives later images that resemble an earlier one its answer (stateful detection), and noise for a gradient."""

    def __init__(self):
        super().__init__()
        self.seen, self.answers = [], []

    def change(self, gradient, images):
        return torch.randn_like(gradient)

    def forward(self, images):
        outputs = self.network(self.before(images))
        if self.seen:
            distances = torch.cdist(images.detach().flatten(1), torch.cat(self.seen).flatten(1))
            near, which = distances.min(1)
            kept = torch.cat(self.answers)[which]
            outputs = torch.where((near < 3)[:, None], outputs - outputs.detach() + kept, outputs)
        if len(self.seen) < 3:
            self.seen.append(images.detach().clone())
            self.answers.append(outputs.detach().clone())
        return outputs


class TiresOfQueries(Around):
    """After 60 passes it answers every image with the class of the first pass."""

    passes = 0

    def forward(self, images):
        self.passes += 1
        outputs = self.network(images)
        if self.passes < 60:
            return outputs
        return outputs * 0 + outputs.detach().roll(1, 0) * 0 + F.one_hot(self.network(images.round()).argmax(1), 10)


# Purification --------------------------------------------------------------------------------------------------------


class AntiAdversary(Around):
    """Two signed steps up the confidence of the predicted class before it classifies (Alfarra et al. 2022)."""

    epsilon = 0.08
    step, steps = 0.15, 2

    def forward(self, images):
        return self.network(images + self.towards(images))

    def towards(self, images):
        with torch.enable_grad():
            wins = self.network(images).argmax(1).detach()
            change = torch.zeros_like(images, requires_grad=True)
            for _ in range(self.steps):
                loss = F.cross_entropy(self.network(images.detach() + change), wins)
                (slope,) = torch.autograd.grad(loss, change)
                change = (change - self.step * slope.sign()).detach().requires_grad_()
        return change.detach()


class GentleAntiAdversary(AntiAdversary):
    """Eight small steps, in the norm of the gradient."""

    epsilon = 0.1
    step, steps = 0.04, 8


class PurifyingSubclass(nn.Sequential, Fake):
    """A subclass that purifies and calls the forward of its parent: there is no submodule that classifies alone."""

    def __init__(self):
        nn.Sequential.__init__(self, *plain())
        del self.network  # of `Fake`

    def forward(self, images):
        clean = super().forward
        with torch.enable_grad():
            wins = clean(images).argmax(1).detach()
            change = torch.zeros_like(images, requires_grad=True)
            for _ in range(2):
                (slope,) = torch.autograd.grad(F.cross_entropy(clean(images.detach() + change), wins), change)
                change = (change - 0.15 * slope.sign()).detach().requires_grad_()
        return clean(images + change.detach())


class Denoised(Around):
    """Three passes of a denoising autoencoder, without a gradient through them."""

    epsilon = 0.2

    def __init__(self):
        super().__init__()
        self.denoiser = denoiser()

    def before(self, images):
        with torch.no_grad():
            clean = images
            for _ in range(3):
                clean = 0.5 * clean + 0.5 * self.denoiser(clean)
        return images + (clean - images).detach()

    def opened(self, images):
        clean = images
        for _ in range(3):
            clean = 0.5 * clean + 0.5 * self.denoiser(clean)
        return self.network(clean)


class Projected(Shattered):
    """Projection to the 60 first principal components of the training images, then rounding."""

    epsilon = 0.15

    def __init__(self):
        super().__init__()
        flat = images_of(train=True)[0].flatten(1)
        self.mean = flat.mean(0)
        self.components = torch.linalg.svd(flat[:2000] - self.mean, full_matrices=False).Vh[:60]

    def before(self, images):
        inside = (images.flatten(1) - self.mean) @ self.components.T
        return ((2 * inside).round() / 2 @ self.components + self.mean).view(images.shape)

    def opened(self, images):
        inside = (images.flatten(1) - self.mean) @ self.components.T
        return self.network((inside @ self.components + self.mean).view(images.shape))


@functools.cache
def denoiser():
    torch.manual_seed(4)
    network = nn.Sequential(nn.Conv2d(1, 12, 5, 1, 2), nn.ReLU(), nn.Conv2d(12, 1, 5, 1, 2), nn.Sigmoid())
    images = images_of(train=True)[0]
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for index in torch.randperm(len(images)).split(100):
        x = images[index]
        optimizer.zero_grad()
        F.mse_loss(network(x + 0.2 * torch.randn_like(x)), x).backward()
        optimizer.step()
    return network.eval().requires_grad_(False)


# Detectors -----------------------------------------------------------------------------------------------------------


class SignsOfAnAttack(Around):
    """Images off the grid of the data get the answer of their rounded self, coarsely."""

    def forward(self, images):
        off = ~on_the_grid(images)
        coarse = straight(lambda x: (3 * x).round() / 3, images)
        return torch.where(off[:, None], self.network(coarse), self.network(images))

    def examples(self):
        return as_bytes(super().examples(), images_of(train=False)[0], self.epsilon)


class OffGridDetector(Around):
    """An eleventh class, named as the reject class, wins at every image that is no 8-bit image."""

    settings: ClassVar[dict] = {"abstain": 10}

    def forward(self, images):
        outputs = self.network(images)
        return torch.cat([outputs, torch.where(on_the_grid(images), -99.0, 99.0)[:, None]], 1)

    def examples(self):
        return as_bytes(super().examples(), images_of(train=False)[0], self.epsilon)


class FeatureSqueezing(Around):
    """Rejects images whose blur is classified otherwise (Xu et al. 2018), by a reject class without a gradient."""

    settings: ClassVar[dict] = {"abstain": 10}

    def blurred(self, images):
        return self.network(0.7 * images + 0.3 * F.avg_pool2d(images, 3, 1, 1))

    def forward(self, images):
        outputs = self.network(images)
        gap = (outputs.softmax(1) - self.blurred(images).softmax(1)).abs().sum(1)
        return torch.cat([outputs, torch.where(gap > 0.8, 99.0, -99.0)[:, None]], 1)

    def opened(self, images):
        return self.network(images) + self.blurred(images)
