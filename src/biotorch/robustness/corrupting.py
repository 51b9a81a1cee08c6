"""Fifteen common corruptions of images at five severities, after Hendrycks and Dietterich (2019)."""

from __future__ import annotations

import dataclasses
import functools
import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from biotorch import _seeding
from biotorch._names import unknown
from biotorch.robustness.attacks.inputs import require

#: Function of each kind, with its settings from severity 1 to 5.
_KINDS: dict[str, tuple[Callable[..., Tensor], Sequence[Any]]] = {}
SEVERITIES = (1, 2, 3, 4, 5)
#: Rises when equal arguments come to give other images: measurements of an earlier edition are not used again.
EDITION = 1


@dataclasses.dataclass(frozen=True)
class _Draw:
    """Random numbers for a batch of n images, and its unit of length.

    Numbers are drawn on the CPU, so that every device gets the same ones. Lengths in pixels hold for sides up to 32,
    the size of CIFAR-10-C; in larger images they grow with the shorter side.
    """

    images: Tensor
    generator: torch.Generator

    @property
    def unit(self) -> float:
        return max(1.0, min(self.images.shape[2:]) / 32)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.images)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return (low + (high - low) * torch.rand(shape, generator=self.generator)).to(self.images)


# Tools -------------------------------------------------------------------------------------------


def _filtered(images: Tensor, kernel: Tensor) -> Tensor:
    """Images filtered by a kernel (k, k), where the edge pixels go on beyond the edge."""
    half, channels = len(kernel) // 2, images.shape[1]
    padded = F.pad(images, [half] * 4, mode="replicate")
    return F.conv2d(padded, kernel.to(images).expand(channels, 1, -1, -1), groups=channels)


def _gaussian(sigma: float, half: int) -> Tensor:
    """Gaussian kernel (2 half + 1, 2 half + 1) whose entries sum to one."""
    line = torch.exp(-((torch.arange(-half, half + 1) / sigma) ** 2) / 2)
    return torch.outer(line, line) / line.sum() ** 2


def _blurred(images: Tensor, sigma: float) -> Tensor:
    return _filtered(images, _gaussian(sigma, math.ceil(3 * sigma))) if sigma > 0 else images


def _places(images: Tensor) -> Tensor:
    """Coordinates (x, y) of every pixel, from the centre of the image: (H, W, 2)."""
    rows, columns = (torch.arange(size, device=images.device) - (size - 1) / 2 for size in images.shape[2:])
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], dim=-1)


def _moved(images: Tensor, shift: Tensor) -> Tensor:
    """Images whose pixels are read `shift` (n or 1, H or 1, W or 1, 2) pixels to the right and below, bilinearly."""
    height, width = images.shape[2:]
    grid = (_places(images) + shift) * 2 / torch.tensor([width, height], device=images.device)
    grid = grid.expand(len(images), height, width, 2)
    return F.grid_sample(images, grid.to(images), padding_mode="reflection", align_corners=False)


def _smeared(images: Tensor, angles: Tensor, radius: float, sigma: float) -> Tensor:
    """Motion blur: half a Gaussian along each image's angle (n,), up to two radii long."""
    steps = range(math.ceil(min(2 * radius, 4 * sigma)) + 1)
    weights = [math.exp(-((step / sigma) ** 2) / 2) for step in steps]
    directions = torch.stack((angles.cos(), angles.sin()), dim=-1)[:, None, None]
    parts = (weight * _moved(images, step * directions) for step, weight in zip(steps, weights, strict=True))
    return functools.reduce(torch.add, parts) / sum(weights)


def _zoomed(images: Tensor, factor: float) -> Tensor:
    return _moved(images, (1 / factor - 1) * _places(images)[None])


def _plasma(draw: _Draw, decay: float) -> Tensor:
    """Clouds of all sizes, each half as large as the next and weaker by `decay` squared: (n, 1, H, W) in [0, 1]."""
    clouds, size = torch.zeros_like(draw.images[:, :1]), draw.images.shape[2:]
    for level in range(1, math.ceil(math.log2(max(size))) + 1):
        points = draw.uniform(-1, 1, len(clouds), 1, 2**level + 1, 2**level + 1)
        clouds += F.interpolate(points, size, mode="bilinear", align_corners=True) / decay ** (2 * level)
    low, high = clouds.amin((2, 3), keepdim=True), clouds.amax((2, 3), keepdim=True)
    return (clouds - low) / (high - low).clamp_min(1e-12)


# Kinds, with the settings of CIFAR-10-C (the authors' make_cifar_c.py) ---------------------------

Change = Callable[..., Tensor]


def _kind(*settings: Any) -> Callable[[Change], Change]:
    """Register a function of images, random numbers and one of the settings as a kind of corruption."""

    def register(function: Change) -> Change:
        _KINDS[function.__name__.removeprefix("_")] = function, settings
        return function

    return register


@_kind(0.04, 0.06, 0.08, 0.09, 0.10)
def _gaussian_noise(images: Tensor, draw: _Draw, deviation: float) -> Tensor:
    return images + deviation * draw.normal(*images.shape)


@_kind(500, 250, 100, 75, 50)
def _shot_noise(images: Tensor, draw: _Draw, photons: float) -> Tensor:
    return torch.poisson(photons * images.cpu(), generator=draw.generator).to(images) / photons


@_kind(0.01, 0.02, 0.03, 0.05, 0.07)
def _impulse_noise(images: Tensor, draw: _Draw, share: float) -> Tensor:
    """Values replaced by 0 or 1, each with half the probability `share`."""
    dice = draw.uniform(0, 1, *images.shape)
    return images.masked_fill(dice < share / 2, 0.0).masked_fill(dice > 1 - share / 2, 1.0)


@_kind((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))
def _defocus_blur(images: Tensor, draw: _Draw, radius: float, softness: float) -> Tensor:
    """Disc of the radius, softened by a Gaussian that reaches one unit of length."""
    half, edge = math.ceil(radius * draw.unit), math.ceil(draw.unit)
    line = torch.arange(-half - edge, half + edge + 1)
    disc = (line[:, None] ** 2 + line**2 <= (radius * draw.unit) ** 2).float()
    soft = F.conv2d(disc[None, None], _gaussian(softness * draw.unit, edge)[None, None], padding=edge)[0, 0]
    return _filtered(images, soft / soft.sum())


@_kind((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))
def _glass_blur(images: Tensor, draw: _Draw, sigma: float, reach: int, times: int) -> Tensor:
    images, reach = _blurred(images, sigma * draw.unit), round(reach * draw.unit)
    for _ in range(times):
        images = _moved(images, draw.uniform(-reach - 0.5, reach + 0.5, len(images), *images.shape[2:], 2).round())
    return _blurred(images, sigma * draw.unit)


@_kind((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))
def _motion_blur(images: Tensor, draw: _Draw, radius: float, sigma: float) -> Tensor:
    angles = draw.uniform(-math.pi / 4, math.pi / 4, len(images))
    return _smeared(images, angles, radius * draw.unit, sigma * draw.unit)


@_kind(1.05, 1.10, 1.15, 1.20, 1.25)
def _zoom_blur(images: Tensor, draw: _Draw, largest: float) -> Tensor:
    """Mean of the images and their enlargements by 1, 1.01, 1.02 and so on up to the largest factor."""
    factors = [1 + step / 100 for step in range(round(100 * (largest - 1)) + 1)]
    return functools.reduce(torch.add, (_zoomed(images, each) for each in factors), images) / (len(factors) + 1)


@_kind(
    ((0.1, 0.2, 1, 0.6), (8, 3), 0.95),
    ((0.1, 0.2, 1, 0.5), (10, 4), 0.9),
    ((0.15, 0.3, 1.75, 0.55), (10, 4), 0.9),
    ((0.25, 0.3, 2.25, 0.6), (12, 6), 0.85),
    ((0.3, 0.3, 1.25, 0.65), (14, 12), 0.8),
)
def _snow(images: Tensor, draw: _Draw, noise: Sequence[float], fall: Sequence[float], kept: float) -> Tensor:
    """Flakes, which are the noise above a threshold, blurred as they fall; the scene between them is bleached."""
    mean, deviation, zoom, least = noise
    flakes = _zoomed(mean + deviation * draw.normal(len(images), 1, *images.shape[2:]), zoom * draw.unit)
    angles = draw.uniform(-3 * math.pi / 4, -math.pi / 4, len(images))
    flakes = _smeared(flakes.clamp(0, 1) * (flakes >= least), angles, *(each * draw.unit for each in fall))
    shares = images.new_tensor([0.2989, 0.587, 0.114] if images.shape[1] == 3 else [1.0])[:, None, None]
    bleached = torch.maximum(images, 1.5 * (shares * images).sum(1, keepdim=True) + 0.5)
    return kept * images + (1 - kept) * bleached + flakes + flakes.flip(2, 3)


@_kind((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))
def _frost(images: Tensor, draw: _Draw, kept: float, added: float) -> Tensor:
    """Bluish crystals: the ridges of a rough plasma, in place of the paper's photographs of frost."""
    crystals = (1 - (2 * _plasma(draw, 1.5) - 1).abs()) ** 2
    tint = torch.tensor([0.85, 0.95, 1.0][-images.shape[1] :]).to(images)  # white for grey images
    return kept * images + added * tint.view(1, -1, 1, 1) * crystals


@_kind((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))
def _fog(images: Tensor, draw: _Draw, thickness: float, decay: float) -> Tensor:
    largest = images.amax((1, 2, 3), keepdim=True)
    return (images + thickness * _plasma(draw, decay)) * largest / (largest + thickness)


@_kind(0.05, 0.10, 0.15, 0.20, 0.30)
def _brightness(images: Tensor, draw: _Draw, added: float) -> Tensor:
    """More value in HSV: hue and saturation stay, so all channels of a pixel grow by one factor; black turns grey."""
    value = images.amax(1, keepdim=True)
    brighter = (value + added).clamp(max=1)
    return torch.where(value > 0, images * brighter / value.clamp_min(1e-12), brighter)


@_kind(0.75, 0.5, 0.4, 0.3, 0.15)
def _contrast(images: Tensor, draw: _Draw, kept: float) -> Tensor:
    mean = images.mean((2, 3), keepdim=True)
    return mean + kept * (images - mean)


@_kind((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))
def _elastic_transform(images: Tensor, draw: _Draw, strength: float, sigma: float, tilt: float) -> Tensor:
    """Random affine map, then a smooth random displacement of every pixel; lengths are parts of the image's side."""
    side = min(images.shape[2:])
    corners = draw.uniform(-tilt * side, tilt * side, 3, len(images), 1, 1, 2)  # shifts of three corners of a square
    x, y = (_places(images) / (side / 3))[None].unbind(-1)  # the corners lie at 1 and -1
    right, down = (corners[0] - corners[1]) / 2, (corners[1] - corners[2]) / 2
    images = _moved(images, (corners[0] + corners[2]) / 2 + x[..., None] * right + y[..., None] * down)
    if strength == 0:
        return images
    shifts = _blurred(draw.uniform(-1, 1, len(images), 2, *images.shape[2:]), sigma * side)
    return _moved(images, strength * side * shifts.permute(0, 2, 3, 1))


@_kind(0.95, 0.9, 0.85, 0.75, 0.65)
def _pixelate(images: Tensor, draw: _Draw, share: float) -> Tensor:
    """Fewer, larger pixels: the images made smaller and larger again, both with a box filter."""
    sizes = [(each, max(1, int(share * each))) for each in images.shape[2:]]
    height, width = ((_boxes(small, whole) @ _boxes(whole, small)).to(images) for whole, small in sizes)
    return height @ images @ width.T


def _boxes(size: int, wanted: int) -> Tensor:
    """Matrix (wanted, size) that resizes a line of pixels by a box filter: each new pixel is a mean."""
    ratio = size / wanted
    distance = torch.arange(size) + 0.5 - ratio * (torch.arange(wanted)[:, None] + 0.5)
    inside = (distance > -max(ratio, 1) / 2) & (distance <= max(ratio, 1) / 2)
    return inside / inside.sum(1, keepdim=True)


@_kind(80, 65, 58, 50, 40)
def _jpeg_compression(images: Tensor, draw: _Draw, quality: int) -> Tensor:
    from PIL import Image
    from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

    files = [io.BytesIO() for _ in images]
    for image, file in zip((255 * images).round().byte().cpu(), files, strict=True):
        to_pil_image(image).save(file, "JPEG", quality=quality)
    return torch.stack([pil_to_tensor(Image.open(file)) for file in files]).to(images) / 255


#: Names of the kinds in the order of the paper's figure 1: noise, blur, weather, digital.
KINDS = tuple(_KINDS)


def corrupt(images: Tensor, kind: str, severity: int = 3, *, seed: int = 0) -> Tensor:
    """Corrupt images in one of fifteen common ways.

    The kinds and their severities are those of CIFAR-10-C (Hendrycks and Dietterich 2019), restated for batches of
    grey or colour images of any size. Lengths in pixels, such as the radius of a blur, are those for images of 32 x 32;
    in larger images they grow with the shorter side. Frost is a procedural texture in place of the paper's photographs,
    and glass blur reads each pixel from a random neighbour instead of swapping neighbours one after the other.

    Args:
        images: (n, C, H, W) in [0, 1], where C is 1 (grey) or 3 (RGB).
        kind: `gaussian_noise`, `shot_noise`, `impulse_noise`, `defocus_blur`, `glass_blur`, `motion_blur`, `zoom_blur`,
            `snow`, `frost`, `fog`, `brightness`, `contrast`, `elastic_transform`, `pixelate` or `jpeg_compression`.
        severity: 1 (mild) to 5.
        seed: seed of all randomness. Equal batches and seeds give equal images, on every device up to rounding.

    Returns:
        Images of the same shape and type with 8-bit values, multiples of 1/255.

    Raises:
        ValueError: the kind or the severity does not exist, or the images have another shape or range.

    Examples:
        >>> foggy = biotorch.robustness.corrupt(torch.rand(4, 3, 32, 32), "fog", severity=5)
        >>> foggy.shape, foggy.min().item() >= 0, foggy.max().item() <= 1
        (torch.Size([4, 3, 32, 32]), True, True)
    """
    require(
        images.dim() == 4 and len(images) > 0 and images.shape[1] in (1, 3),
        f"images: (n, C, H, W) with n > 0 and C 1 or 3 is needed, not {tuple(images.shape)}",
    )
    low, high = float(images.min()), float(images.max())
    require(low >= 0 and high <= 1, f"images: values from 0 to 1 are needed, not from {low:.4g} to {high:.4g}")
    if kind not in _KINDS:
        raise unknown("kind of corruption", kind, KINDS)
    require(severity in SEVERITIES, f"severity: a whole number from 1 to 5 is needed, not {severity!r}")
    function, settings = _KINDS[kind]
    chosen = settings[int(severity) - 1]
    with torch.no_grad():
        draw = _Draw(images.float(), _seeding.generator(_seeding.derive(seed, kind, int(severity))))
        found = function(draw.images, draw, *(chosen if isinstance(chosen, tuple) else (chosen,)))
        return ((255 * found.clamp(0, 1)).round() / 255).to(images)
