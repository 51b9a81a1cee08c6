"""Operations on pixels: decoding, resizing, normalisation, random crops and reflections."""

from __future__ import annotations

import dataclasses
import functools
import struct
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from biotorch import _memory, _seeding
from biotorch._sections import Section
from biotorch.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

#: Exceptions that Pillow raises for damaged files, depending on the format and the place of the damage.
_DAMAGED = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    MemoryError,
    struct.error,
    zlib.error,
)
_GREY = ("1", "L", "LA")
#: Formats that are read, by Pillow's names; PPM is also PGM and PBM. Pillow alone would hand EPS to Ghostscript.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
#: Bytes per pixel that decoding takes for a moment: the image in its own mode and in RGB, four each.
_DECODED = 8
#: Number of pixels from which on their memory is looked for; for small images this would take longer than decoding.
_LARGE = 2**24
#: Number of images that are resized at once, which bounds the memory that resizing needs besides its result.
_CHUNK = 1000


def decode(source: str | BinaryIO, name: str, keep_grey: bool = False) -> Image.Image:
    """Read an image file as 8-bit RGB, whatever its mode; with `keep_grey` grey images stay grey ("L").

    The formats are JPEG, PNG, WebP, BMP, TIFF, GIF (the first frame) and PPM, whatever the name of the file.

    Raises DataError, which contains `name`, if the file cannot be read, or has more pixels than Pillow takes for safe.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(source, formats=_FORMATS) as image:
            width, height = image.size
            if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
                raise ValueError(
                    f"its header asks for {width}x{height} pixels, more than Pillow's limit against forged files, "
                    "PIL.Image.MAX_IMAGE_PIXELS"
                )
            if width * height > _LARGE:
                _memory.require(width * height * _DECODED, "the image")
            if image.mode.startswith(("I", "F")):
                # Pillow would clip these pixels at 255, which leaves a white image.
                raise ValueError(f"pixels of mode {image.mode} have more than 8 bits; convert them to 8 bits")
            return image.convert("L" if keep_grey and image.mode in _GREY else "RGB")
    except UnidentifiedImageError as error:
        raise DataError(f"{name} cannot be read as an image: it is none in {', '.join(_FORMATS)}.") from error
    except (*_DAMAGED, Image.DecompressionBombError) as error:
        raise DataError(f"{name} cannot be read as an image: {error}.") from error


def resize(images: Tensor, size: int | None) -> Tensor:
    """Resize images (N, H, W, C) uint8 to (N, size, size, C) by antialiased bilinear interpolation; None: no change.

    Raises NotEnoughMemoryError if they do not fit into memory.
    """
    if size is None or images.shape[1:3] == (size, size):
        return images
    _memory.require(len(images) * size * size * images.shape[3], f"data.target_size {size}: the resized images")
    from torchvision.transforms.v2 import functional as transforms

    chunks = (chunk.permute(0, 3, 1, 2).contiguous() for chunk in torch.split(images, _CHUNK))
    resized = (transforms.resize(chunk, [size, size], antialias=True) for chunk in chunks)
    return torch.cat([chunk.permute(0, 2, 3, 1).contiguous() for chunk in resized])


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """Normalisation of images by mean and standard deviation of each channel, for pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def measured(cls, images: Tensor) -> Normalisation:
        """Measure images (N, H, W, C) uint8, to 4 decimals; a constant channel gets a standard deviation of 1."""
        # Counts of each value are integers, so the result does not depend on the order of summation.
        channels = images.flatten(0, -2).unbind(-1)
        counts = torch.stack([channel.contiguous().bincount(minlength=256) for channel in channels]).double()
        values, total = torch.arange(256, dtype=torch.float64) / 255, len(channels[0])
        mean = counts @ values / total
        std = ((counts * (values - mean[:, None]).square()).sum(1) / total).sqrt()
        return cls(
            tuple(round(value, 4) for value in mean.tolist()), tuple(round(value, 4) or 1.0 for value in std.tolist())
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise images (N, H, W, C) uint8 to float32 (N, C, H, W) in channels_last memory format."""
        # Two operations that round separately, because a fused one rounds differently at the end of a batch.
        scale, shift = _rows(self, images.shape[1] * images.shape[2], images.device)
        return images.flatten(1).float().mul_(scale).add_(shift).view(images.shape).permute(0, 3, 1, 2)


@functools.lru_cache(maxsize=8)
def _rows(normalisation: Normalisation, pixels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Factor and summand of every value of an image. Broadcasting them over three channels is four times as slow."""
    mean, std = torch.tensor(normalisation.mean), torch.tensor(normalisation.std)
    scale, shift = (row.repeat(pixels).to(device) for row in (1 / (255 * std), -mean / std))
    return scale, shift


class Augmentation(Section):
    """`data.augment`: random crops and reflections of the training images of a set in memory.

    Examples:
        >>> biotorch.data.Augmentation(crop=2).padded(torch.ones(1, 8, 8, 3)).shape
        torch.Size([1, 12, 12, 3])
    """

    crop: int = Field(default=4, ge=0)
    """Width in pixels of the black border added to each side before a random crop to the image's size."""
    flip: bool = True
    """Swap left and right with probability 1/2."""

    def padded(self, images: Tensor) -> Tensor:
        """Add the black border to images (N, H, W, C)."""
        return F.pad(images, (0, 0, *[self.crop] * 4)) if self.crop else images

    def centre(self, padded: Tensor) -> Tensor:
        """Remove the border that `padded` has added."""
        height, width = padded.shape[1:3]
        return padded[:, self.crop : height - self.crop, self.crop : width - self.crop]

    def view(self, padded: Tensor, seed: int) -> Callable[[Tensor], Tensor]:
        """Function from indices (n,) to the augmented images (n, H, W, C) under one seed.

        All random numbers are drawn here, for every example of the set, so that the augmentation of an example does not
        depend on its batch.
        """
        generator = _seeding.generator(seed)
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
