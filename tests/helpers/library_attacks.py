"""Networks and images for the library's attacks."""

from __future__ import annotations

import warnings

import torch
from torch import nn


def conv(classes=4, dtype=torch.float32, size=8):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        width = 4 * (size - 2) ** 2
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(width, classes)
        )
        images = torch.rand(200, 1, size, size)
    with torch.no_grad():  # all classes occur
        net[-1].bias -= net.eval()(images).mean(0)
    return net.train().to(dtype)


def batch(n=6, classes=4, dtype=torch.float32, model=None):
    images = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    model = model or conv(classes, dtype)
    with torch.no_grad():
        return images, model.eval()(images).argmax(1)


def quiet(attack, images, labels):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return attack.run(images, labels)
