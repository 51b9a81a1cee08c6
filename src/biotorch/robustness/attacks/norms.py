"""Balls that bound perturbations: radius epsilon around an image in L∞, L2 or L1, intersected with [0, 1]."""

from __future__ import annotations

import math
import typing
from typing import Literal

import torch
from torch import Tensor

from biotorch.robustness.attacks.inputs import ROUNDING, is_number, require

Norm = Literal["linf", "l2", "l1"]

_SMALLEST = 1e-12

#: Share of the pixel values that a step in L1 changes, those with the largest derivatives (Tramèr and Boneh 2019,
#: section 3.2). Changing a single value would be steepest, but it soon reaches 0 or 1.
_CHANGED = 0.01

#: Halvings of the interval in which the projection in L1 looks for its threshold.
_HALVINGS = 30


def size(perturbation: Tensor, norm: Norm) -> Tensor:
    """Norm of each example's perturbation: (n, ...) to (n,)."""
    flat = perturbation.flatten(1)
    if norm == "l1":
        return flat.abs().sum(1)
    return flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)


def largest(norm: Norm, values: int) -> float:
    """Norm of the largest perturbation of an image of so many values in [0, 1]."""
    return {"linf": 1.0, "l2": math.sqrt(values), "l1": float(values)}[norm]


def project(points: Tensor, images: Tensor, epsilon: float, norm: Norm) -> Tensor:
    """Points (n, ...) projected into the ball around their images (n, ...), then clamped to [0, 1].

    Clamping never leaves the ball, since the image itself lies in [0, 1]. In L1 the result is the point of the ball
    and of [0, 1] that is nearest in L2 (Croce and Hein 2021, proposition 2.1); in L2 clamping may lead past it.
    """
    change = points - images
    if norm == "linf":
        change = change.clamp(-epsilon, epsilon)
    elif norm == "l2":
        change = change * (epsilon / per_example(size(change, norm), change).clamp_min(_SMALLEST)).clamp(max=1)
    else:
        change = _shrunk(change, images, epsilon)
    return (images + change).clamp(0, 1)


def _shrunk(change: Tensor, images: Tensor, epsilon: float) -> Tensor:
    """Perturbation s min(max(|c| - t, 0), room), where the smallest t is found for which its L1 norm is epsilon.

    Here c (n, ...) is the change, s its sign, and `room` how far the value may move in this direction.
    """
    # A sum of many rounded values may exceed epsilon, so the ball is smaller by as much.
    epsilon -= math.sqrt(images[0].numel()) * torch.finfo(images.dtype).eps
    wanted, room = change.abs(), torch.where(change > 0, 1 - images, images)
    low, high = change.new_zeros(len(change)), size(wanted, "linf")

    def left(threshold: Tensor) -> Tensor:
        return (wanted - per_example(threshold, wanted)).clamp_min(0).minimum(room)

    high = torch.where(size(left(low), "l1") <= epsilon, low, high)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        inside = size(left(middle), "l1") <= epsilon
        low, high = torch.where(inside, low, middle), torch.where(inside, middle, high)
    return change.sign() * left(high)


def random_point(images: Tensor, epsilon: float, norm: Norm, generator: torch.Generator) -> Tensor:
    """Random point (n, ...), uniformly distributed in each image's ball, then clamped to [0, 1]."""
    if norm == "linf":
        change = torch.empty(images.shape, dtype=images.dtype).uniform_(-epsilon, epsilon, generator=generator)
    else:
        change = torch.randn(images.shape, dtype=images.dtype, generator=generator)
        if norm == "l1":  # absolute values from the exponential distribution point everywhere equally often
            change = change.sign() * torch.empty_like(change).exponential_(generator=generator)
        share = torch.rand(len(images), dtype=images.dtype, generator=generator) ** (1 / images[0].numel())
        change = epsilon * change * per_example(share / size(change, norm).clamp_min(_SMALLEST), change)
    return (images + change.to(images.device)).clamp(0, 1)


def steepest(gradient: Tensor, norm: Norm, length: float = 0.0, points: Tensor | None = None) -> Tensor:
    """Direction (n, ...) of norm one in which the loss rises most: sign(g) in L∞, g / |g| in L2.

    In L1 it is the sign of the 1 % of the values with the largest |g|, divided by their number. For a step of `length`
    they are at least so many, because none can change by more than 1. Values of `points` that stand at 0 or 1 and
    would leave [0, 1] are not chosen: clamping would undo their step.
    """
    if norm == "linf":
        return gradient.sign()
    if norm == "l1":
        if points is not None:
            blocked = ((points <= 0) & (gradient < 0)) | ((points >= 1) & (gradient > 0))
            gradient = gradient.masked_fill(blocked, 0)
        sizes = gradient.abs().flatten(1)
        count = min(math.ceil(max(_CHANGED * sizes.shape[1], length)), sizes.shape[1])
        least = sizes.topk(count, dim=1).values[:, -1]
        signs = gradient.sign() * (gradient.abs() >= per_example(least, gradient))
        return signs / per_example(size(signs, "l1"), signs).clamp_min(1)
    # Dividing by the largest value first keeps tiny gradients (a saturated cross-entropy) from vanishing when squared.
    tiny = torch.finfo(gradient.dtype).tiny
    scaled = gradient / per_example(size(gradient, "linf"), gradient).clamp_min(tiny)
    return scaled / per_example(size(scaled, norm), scaled).clamp_min(tiny)


def per_example(values: Tensor, like: Tensor) -> Tensor:
    """Values (n,) reshaped to (n, 1, ...), so that they multiply `like` (n, ...) per example."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


def as_8bit(adversarial: Tensor, images: Tensor, epsilon: float, norm: Norm = "linf") -> Tensor:
    """Adversarial examples as 8-bit images that stay in the ball.

    Each value is rounded to the nearest multiple of 1/255. Where this would leave the ball, it is rounded towards the
    image: in L∞ each such value, in L2 and L1 as many values as it takes, those last that are nearest to their rounded
    value. Rounding may undo an attack, so classify `result / 255` again.

    Args:
        adversarial: (n, ...) in [0, 1], in the ball around `images`, a tensor or an array.
        images: (n, ...) in [0, 1], multiples of 1/255, a tensor or an array.
        epsilon: radius of the ball.
        norm: norm of the ball.

    Returns:
        (n, ...) uint8; `result / 255` is no further from `images` than epsilon.

    Raises:
        ValueError: the shapes differ, `images` are no 8-bit images, an example lies outside the ball, or norm or
            epsilon is unusable.

    Examples:
        >>> images = torch.tensor([[100, 0, 255]]) / 255
        >>> adversarial = images + torch.tensor([[0.03, 0.03, -0.03]])
        >>> biotorch.robustness.as_8bit(adversarial, images, epsilon=0.03)  # 0.03 is 7.65 levels
        tensor([[107,   7, 248]], dtype=torch.uint8)
    """
    require(norm in typing.get_args(Norm), f"norm: one of {', '.join(typing.get_args(Norm))} is needed, not {norm!r}")
    require(is_number(epsilon) and epsilon >= 0, f"epsilon: a number from 0 on is needed, not {epsilon!r}")
    require(norm != "linf" or epsilon <= 1, f"epsilon: pixels in [0, 1] are meant; write {epsilon:g}/255")
    adversarial, images = torch.as_tensor(adversarial), torch.as_tensor(images)
    if adversarial.shape != images.shape:
        raise ValueError(f"adversarial: {tuple(images.shape)} is needed, like images, not {tuple(adversarial.shape)}")
    levels = 255 * images.double()
    origin = levels.round()
    if not bool(((levels - origin).abs() < 0.01).all()):  # also raises if a value is NaN
        raise ValueError(
            "images: multiples of 1/255 are needed, because around other images the ball may hold no 8-bit image; "
            "attack images that are rounded, (images * 255).round() / 255"
        )
    farthest = float(size(adversarial.double() - images.double(), norm).max())
    require(
        farthest <= epsilon * (1 + ROUNDING) + ROUNDING,  # false if a value is NaN
        f"adversarial: the farthest example is {farthest:.6g} from its image, outside the ball of radius {epsilon:g}",
    )
    change = (255 * adversarial.double() - origin).flatten(1)
    whole = change.trunc()  # towards the image, and so inside the ball
    rest = (change - whole).abs()
    order = rest.argsort(dim=1, descending=True, stable=True)
    # Rounding away from the image makes |whole| larger by one. The values with the largest rest come first, as long as
    # the ball has room for them.
    before = whole.abs().gather(1, order)
    if norm == "linf":
        fits = before + 1 <= 255 * epsilon + 1e-4
    elif norm == "l2":
        fits = (before**2).sum(1, keepdim=True) + (2 * before + 1).cumsum(1) <= (255 * epsilon) ** 2 + 1e-4
    else:
        fits = before.sum(1, keepdim=True) + torch.ones_like(before).cumsum(1) <= 255 * epsilon + 1e-4
    up = torch.zeros_like(fits).scatter(1, order, fits) & (rest >= 0.5)
    rounded = origin.flatten(1) + whole + change.sign() * up
    return rounded.clamp(0, 255).to(torch.uint8).reshape(images.shape)
