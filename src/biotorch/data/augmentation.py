"""Random crops and reflections of images in memory, for whole batches at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from biotorch import seeding
from biotorch.frozen import Section


class Augmentation(Section):
    """The `data.augment` section, for sets in memory."""

    crop: int = Field(default=4, ge=0)
    """Pixels of black border on each side, out of which a window of the image's size is cut at random."""
    flip: bool = True
    """Mirror left and right with probability 1/2."""

    def padded(self, images: Tensor) -> Tensor:
        """Images (N, H, W, C) with the border that `window` cuts from."""
        return F.pad(images, (0, 0, *[self.crop] * 4)) if self.crop else images

    def centre(self, padded: Tensor) -> Tensor:
        """Those images without the border."""
        height, width = padded.shape[1:3]
        return padded[:, self.crop : height - self.crop, self.crop : width - self.crop]

    def view(self, padded: Tensor, seed: int) -> Callable[[Tensor], Tensor]:
        """From indices (n,) to their augmented images (n, H, W, C), under one seed.

        All draws are made here, for every example of the set, so that an example's fate cannot depend on its batch.
        """
        generator = seeding.generator(seed)
        count, device = len(padded), padded.device
        offsets = torch.randint(2 * self.crop + 1, (2, count), generator=generator).to(device)
        mirrored = (torch.rand(count, generator=generator) < 0.5).to(device)
        height, width = self.centre(padded).shape[1:3]
        windows = padded.unfold(1, height, 1).unfold(2, width, 1).permute(0, 1, 2, 4, 5, 3)

        def pixels(index: Tensor) -> Tensor:
            images = windows[index, offsets[0, index], offsets[1, index]]
            if not self.flip:
                return images
            return torch.where(mirrored[index][:, None, None, None], images.flip(2), images)

        return pixels
