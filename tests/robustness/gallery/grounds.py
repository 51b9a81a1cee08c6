"""Ground of the gallery: MNIST, small networks trained on it, and the accuracy that an attack really leaves."""

from __future__ import annotations

import functools
import os

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.datasets import MNIST

from biotorch.robustness import PGD

#: Folder with MNIST, or None.
FOLDER = os.environ.get("BIOTORCH_DATA")
#: Number of test images that are attacked, and the radius (L∞).
N, EPSILON = 100, 0.1
#: Number of training images.
TRAINING = 12_000


@functools.cache
def images_of(train: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (n, 1, 28, 28) in [0, 1] and labels: those for training, or those that are attacked."""
    found = MNIST(FOLDER, train=train)
    n = TRAINING if train else N
    return found.data[:n, None].float() / 255, found.targets[:n]


def cnn(activation: type[nn.Module] = nn.ReLU, bottom: nn.Module | None = None) -> nn.Sequential:
    """Two convolutions and two linear layers, on top of `bottom`."""
    return nn.Sequential(
        bottom or nn.Identity(),
        nn.Conv2d(1, 8, 5, 2, 2),
        activation(),
        nn.Conv2d(8, 16, 3, 2, 1),
        activation(),
        nn.Flatten(),
        nn.Linear(784, 64),
        activation(),
        nn.Linear(64, 10),
    )


def mlp(width: int = 100) -> nn.Sequential:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )


def train(network, *, epochs=3, loss=F.cross_entropy, epsilon=0.0, noise=0.0, rate=2e-3, steps=3):
    """The network, trained by Adam with a fixed seed; on PGD examples if there is an `epsilon`."""
    images, labels = images_of(train=True)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(network.parameters(), rate)
    network.train()
    for epoch in range(epochs):
        radius = epsilon * min(1.0, (epoch + 1) / 2)
        for index in torch.randperm(len(images), generator=generator).split(100):
            x, y = images[index], labels[index]
            if epsilon:
                attack = PGD(network, radius, steps=steps, step_size=radius / 2, stop_at_success=False)
                x = attack(x, y)
            if noise:
                x = x + noise * torch.randn(x.shape, generator=generator)
            optimizer.zero_grad()
            loss(network(x), y).backward()
            optimizer.step()
    return network.eval().requires_grad_(False)


@functools.cache
def plain(seed: int = 0) -> nn.Module:
    """An undefended network, which every fake pretends to defend. Never changed by anyone."""
    torch.manual_seed(seed)
    return train(cnn(), epochs=6)


@functools.cache
def hardened() -> nn.Module:
    """A network trained on adversarial examples."""
    torch.manual_seed(0)
    return train(cnn(), epochs=4, epsilon=1.2 * EPSILON)


def accuracy(network, images, passes: int = 1, abstain: int | None = None) -> float:
    """Accuracy (%) on images in the order of the test set, in the mean of several passes.

    With a reject class, rejected images count as right, as they do under an attack.
    """
    labels = images_of(train=False)[1]
    with torch.no_grad():
        answers = torch.stack([network.eval()(images).argmax(1) for _ in range(passes)])
    return 100 * float(((answers == labels) | (answers == (-1 if abstain is None else abstain))).float().mean())


def broken(network, epsilon: float = EPSILON, **settings) -> torch.Tensor:
    """Adversarial examples of a network whose gradient can be trusted, by PGD with all of its steps."""
    settings = {"steps": 40, "stop_at_success": False, **settings}
    return PGD(network, epsilon, **settings)(*images_of(train=False))
