"""A network that takes images in [0, 1], in front of one that wants them normalised."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalised(nn.Module):
    """`model((images - mean) / std)`: what is attacked are the images, not their normalised values.

    Args:
        model: takes normalised images (n, C, ...).
        mean, std: of each channel, of pixels in [0, 1].

    Raises:
        ValueError: `mean` and `std` are not positive numbers of the same channels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if not mean or len(mean) != len(std) or min(std) <= 0:
            raise ValueError(
                f"mean and std: one number per channel is needed, std above 0, not {list(mean)} and {list(std)}"
            )
        self.model = model
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        shape = (1, -1, *[1] * (images.dim() - 2))
        mean, std = (each.to(images).view(shape) for each in (self.mean, self.std))
        outputs: Tensor = self.model((images - mean) / std)
        return outputs
