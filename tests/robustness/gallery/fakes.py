"""Fake defences: networks that look robust to an attack which believes their gradients or their outputs, and are not.

Each is a class whose instance classifies clean images about as well as the undefended network inside. `opened` is the
network that an attacker who has read the class attacks in its place; the tests assert that the examples leave less than
half of the clean accuracy.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from grounds import EPSILON, broken, plain
from torch import nn

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
