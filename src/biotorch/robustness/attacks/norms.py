"""Balls that bound perturbations: radius epsilon around an image in L∞ or L2, intersected with [0, 1]."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Norm = Literal["linf", "l2"]

_SMALLEST = 1e-12


def size(perturbation: Tensor, norm: Norm) -> Tensor:
    """Norm of each example's perturbation: (n, ...) to (n,)."""
    flat = perturbation.flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)


def project(points: Tensor, images: Tensor, epsilon: float, norm: Norm) -> Tensor:
    """Points (n, ...) projected into the ball around their images (n, ...), then clamped to [0, 1].

    Clamping never leaves the ball, since the image itself lies in [0, 1].
    """
    change = points - images
    if norm == "linf":
        change = change.clamp(-epsilon, epsilon)
    else:
        change = change * (epsilon / _per_example(size(change, norm), change).clamp_min(_SMALLEST)).clamp(max=1)
    return (images + change).clamp(0, 1)


def random_point(images: Tensor, epsilon: float, norm: Norm, generator: torch.Generator) -> Tensor:
    """Random point (n, ...), uniformly distributed in each image's ball, then clamped to [0, 1]."""
    if norm == "linf":
        change = torch.empty(images.shape, dtype=images.dtype).uniform_(-epsilon, epsilon, generator=generator)
    else:
        change = torch.randn(images.shape, dtype=images.dtype, generator=generator)
        share = torch.rand(len(images), dtype=images.dtype, generator=generator) ** (1 / images[0].numel())
        change = epsilon * change * _per_example(share / size(change, norm).clamp_min(_SMALLEST), change)
    return (images + change.to(images.device)).clamp(0, 1)


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """Direction of norm one in which the loss rises most: sign(g) in L∞, g / |g| in L2. Shape (n, ...)."""
    if norm == "linf":
        return gradient.sign()
    # Dividing by the largest value first keeps tiny gradients (a saturated cross-entropy) from vanishing when squared.
    tiny = torch.finfo(gradient.dtype).tiny
    scaled = gradient / _per_example(size(gradient, "linf"), gradient).clamp_min(tiny)
    return scaled / _per_example(size(scaled, norm), scaled).clamp_min(tiny)


def _per_example(values: Tensor, like: Tensor) -> Tensor:
    """Values (n,) reshaped to (n, 1, ...), so that they multiply `like` (n, ...) per example."""
    return values.reshape(-1, *[1] * (like.dim() - 1))
