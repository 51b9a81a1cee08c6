"""Preprocessing in front of an attacked network whose own gradient is zero or undefined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Preprocess = Callable[[Tensor], Tensor]


def straight_through(preprocess: Preprocess, backward: Preprocess | None = None) -> nn.Module:
    """Module that preprocesses images and passes gradients straight through.

    An attack needs it against steps without a useful gradient, such as JPEG, a smaller bit depth or quantisation:
    "backward pass differentiable approximation" (BPDA; Athalye et al. 2018, section 4.1). The forward pass is
    `preprocess(images)`. The backward pass is the identity, or that of `backward`, a differentiable approximation of
    `preprocess`. Attack `nn.Sequential(straight_through(preprocess), model)`.

    Args:
        preprocess: maps images (n, ...) to images of the same shape. It is called without gradients.
        backward: maps images (n, ...) to the same shape, differentiably. Default: the identity.

    Raises:
        TypeError: `preprocess` or `backward` cannot be called.
        ValueError: on a call, `preprocess` or `backward` changes the shape.

    Examples:
        >>> eight_levels = biotorch.robustness.straight_through(lambda images: (images * 7).round() / 7)
        >>> images = torch.tensor([[0.1, 0.5, 0.9]], requires_grad=True)
        >>> processed = eight_levels(images)
        >>> processed.detach()
        tensor([[0.1429, 0.5714, 0.8571]])
        >>> processed.sum().backward()
        >>> images.grad
        tensor([[1., 1., 1.]])
    """
    for name, each in {"preprocess": preprocess, "backward": backward}.items():
        if not callable(each) and (each is not None or name == "preprocess"):
            raise TypeError(f"{name}: a function from images to images is needed, not {each!r}")
    return StraightThrough(preprocess, backward)


class StraightThrough(nn.Module):
    """Module that `straight_through` returns."""

    def __init__(self, preprocess: Preprocess, backward: Preprocess | None) -> None:
        super().__init__()
        self.preprocess, self.backward = preprocess, backward

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            processed = self.preprocess(images.detach()).to(images)
        approximation = images if self.backward is None else self.backward(images)
        for name, each in {"preprocess": processed, "backward": approximation}.items():
            if each.shape != images.shape:
                raise ValueError(
                    f"{name}: images of shape {tuple(images.shape)} must keep it, but came back as {tuple(each.shape)}"
                )
        replaced: Tensor = _Replaced.apply(approximation, processed)
        return replaced


class _Replaced(torch.autograd.Function):
    """Value of one tensor with the gradient of another. (`a + (b - a).detach()` would round b.)"""

    @staticmethod
    def forward(approximation: Tensor, processed: Tensor) -> Tensor:
        return processed.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
