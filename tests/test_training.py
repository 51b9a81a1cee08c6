"""Every rule learns by a user's plain loop, and no rule but backpropagation is backpropagation: two-sided bounds."""

import functools

import pytest
import torch
from conformance import LAYERWISE, RULES
from torch import nn
from torch.nn import functional as F

import biotorch


@functools.cache
def task(image: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Ten noisy prototypes of 8x8 pixels, 600 examples: linear features alone get some, not all."""
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.randn(20, 64, generator=generator)
    which = torch.randint(20, (600,), generator=generator)
    x = prototypes[which] + 0.9 * torch.randn(600, 64, generator=generator)
    return (x.view(-1, 1, 8, 8) if image else x), which % 10  # two prototypes a class: not one cluster each


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 10))


def conv_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def trained(network, rule, steps: int = 150, lr: float = 0.05, hidden: bool = True, **options):
    """The model, its final loss and accuracy on the training set, after `steps` of SGD with momentum."""
    torch.manual_seed(1)
    model = network()
    if rule is not None:
        biotorch.convert(model, rule, copy_weights=False, seed=1, **options)
    x, y = task(network is conv_net)
    parameters = model.parameters() if hidden else model[-1].parameters()
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9)
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        chosen = torch.randint(len(x), (100,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
    with torch.no_grad():
        logits = model.eval()(x)
    return model, F.cross_entropy(logits, y).item(), (logits.argmax(1) == y).float().mean().item()
