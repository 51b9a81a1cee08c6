"""Networks that are measured, with random examples in the shape that each takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from biotorch import models


class CharLSTM(nn.Module):
    """An LSTM over characters: int64 tokens (N, T) -> logits (N, T, num_classes)."""

    def __init__(self, num_classes: int = 65, width: int = 128, depth: int = 1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_classes, width)
        self.lstm = nn.LSTM(width, width, depth, batch_first=True)
        self.head = nn.Linear(width, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(tokens))[0])  # type: ignore[no-any-return]


@dataclasses.dataclass(frozen=True)
class Network:
    """A network, its number of classes and the shape of one example: (C, H, W) of an image, (T,) of a text."""

    name: str
    architecture: str
    shape: tuple[int, ...]
    classes: int = 10
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def build(self) -> nn.Module:
        """Make the network, always with the same weights; images and convolutions are in channels_last."""
        torch.manual_seed(0)
        if self.architecture == "lstm":
            return CharLSTM(self.classes, **self.arguments)
        model = models.build(self.architecture, self.classes, input_shape=self.shape, **self.arguments)
        return model.to(memory_format=torch.channels_last)

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Random examples (size, *shape) and labels (size,), or for a text (size, T) each."""
        if len(self.shape) == 1:
            tokens = torch.randint(self.classes, (2, size, *self.shape))
            return tokens[0], tokens[1]
        images = torch.randn(size, *self.shape).contiguous(memory_format=torch.channels_last)
        return images, torch.randint(self.classes, (size,))

    def changed(self, **fields: Any) -> Network:
        """This network with another shape, number of classes or arguments."""
        return dataclasses.replace(self, **fields)


def loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of outputs (n, C), or (n, T, C) with labels (n, T)."""
    return F.cross_entropy(outputs.flatten(0, -2), labels.flatten())


_CIFAR = (3, 32, 32)

NETWORKS = {
    each.name: each
    for each in (
        Network("le_net_mnist", "le_net_mnist", (1, 32, 32)),
        Network("le_net_cifar", "le_net_cifar", _CIFAR),
        Network("resnet20", "resnet20", _CIFAR),
        Network("resnet56", "resnet56", _CIFAR),
        Network("mlp", "mlp", (1, 28, 28), arguments={"width": 1000, "depth": 3}),
        # Patches of 8 pixels: 16 tokens and the class token, so that a step takes about a second on two cores.
        Network("vit_tiny", "timm/vit_tiny_patch16_224", _CIFAR, arguments={"patch_size": 8}),
        Network("char_transformer", "char_transformer", (64,), 65),
        Network("lstm", "lstm", (32,), 65),
        Network("resnet18", "resnet18", (3, 64, 64)),
    )
}
