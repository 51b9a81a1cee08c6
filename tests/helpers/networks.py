"""Small networks, and the one training step, that several test files share."""

from __future__ import annotations

import torch
from rule_names import BY_ERROR, RULES, TRAINING
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["BY_ERROR", "RULES", "TRAINING", "batch", "gradients", "images", "labels", "mlp", "same", "state"]


def mlp(width: int = 8) -> nn.Sequential:
    """6 -> width -> width -> 3; the layers are named 0, 2 and 4."""
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))


def batch(n: int = 4, features: int = 6) -> Tensor:
    return torch.randn(n, features, generator=torch.Generator().manual_seed(0))


def images(n: int = 2, channels: int = 3, size: int = 32) -> Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(0))


def labels(n: int = 4, classes: int = 3) -> Tensor:
    return torch.arange(n) % classes


def gradients(model: nn.Module, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """The gradients of one cross entropy step, by parameter name; `.grad` starts and ends as None."""
    model.zero_grad()
    F.cross_entropy(model(inputs), targets).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of parameters and buffers."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Equal to the bit, name by name."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
