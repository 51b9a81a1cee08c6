"""Modules around a network under attack: normalisation, straight-through preprocessing, a detector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from biotorch.models.outputs import logits_of

#: One number, or one per channel.
Numbers = float | Sequence[float] | Tensor | NDArray[Any]


class Normalised(nn.Module):
    """Network that normalises its input first: `model((images - mean) / std)`.

    With it, attacks perturb images in [0, 1] and not their normalised values.

    Args:
        model: takes normalised images (n, C, ...).
        mean, std: mean and standard deviation of each channel, for pixels in [0, 1]; or one number for all channels.

    Raises:
        ValueError: `mean` and `std` are empty or of different lengths, or a `std` is not above 0.

    Examples:
        >>> model = biotorch.robustness.Normalised(nn.Flatten(), mean=[0.5], std=[0.25])
        >>> model(torch.ones(1, 1, 2, 2))
        tensor([[2., 2., 2., 2.]])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Numbers, std: Numbers) -> None:
        super().__init__()
        values = (torch.as_tensor(each, dtype=torch.get_default_dtype()) for each in (mean, std))
        own_mean, own_std = (each.detach().clone().flatten() for each in values)
        if not len(own_mean) or len(own_mean) != len(own_std) or not bool((own_std > 0).all()):
            raise ValueError(f"mean and std: need one number per channel, and std above 0; got {mean} and {std}")
        self.model = model
        self.register_buffer("mean", own_mean, persistent=False)
        self.register_buffer("std", own_std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        shape = (1, -1, *[1] * (images.dim() - 2))
        mean, std = (each.to(images).view(shape) for each in (self.mean, self.std))
        outputs: Tensor = self.model((images - mean) / std)
        return outputs


class Detector(nn.Module):
    """Network with a reject class, which wins where a score says that the image is suspicious.

    Attacks with `abstain=C` then count an image as broken only if it is neither classified as labelled nor rejected,
    and follow the gradients of both the network and the score, as an attacker who knows the detector does.

    Args:
        model: maps images (n, ...) to outputs (n, C).
        score: maps images (n, ...) and outputs (n, C) to scores (n,), a function or a module. High scores are
            suspicious. It should be differentiable, or attacks along a gradient cannot evade it.
        threshold: scores above it are rejected.

    Raises:
        ValueError: at a forward pass, the scores are not of shape (n,).

    Examples:
        >>> def doubt(images, outputs):
        ...     return 1 - outputs.softmax(1).amax(1)
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> images = torch.rand(4, 1, 8, 8)
        >>> network = biotorch.robustness.Detector(model, doubt, threshold=0.99)
        >>> network(images).shape  # outputs of the ten classes, and of the reject class
        torch.Size([4, 11])
        >>> attack = biotorch.robustness.PGD(network, epsilon=0.5, steps=10, abstain=10)
        >>> attack.run(images, model(images).argmax(1)).robust.sum().item()
        0
    """

    def __init__(self, model: nn.Module, score: Callable[[Tensor, Tensor], Tensor], threshold: float) -> None:
        super().__init__()
        self.model, self.score, self.threshold = model, score, threshold

    def forward(self, images: Tensor) -> Tensor:
        """Outputs (n, C + 1); the last is the largest output of `model` plus the score's excess over the threshold."""
        outputs = logits_of(self.model(images.clone()))  # the network may write into them
        scores = self.score(images, outputs)
        if scores.shape != outputs.shape[:1]:
            raise ValueError(f"score: shape ({len(outputs)},) is needed, not {tuple(scores.shape)}")
        return torch.cat([outputs, (outputs.amax(1) + scores - self.threshold)[:, None]], dim=1)


Preprocess = Callable[[Tensor], Tensor]


def straight_through(preprocess: Preprocess, backward: Preprocess | None = None) -> nn.Module:
    """Module that preprocesses images and passes gradients straight through.

    An attack needs it against steps without a useful gradient, such as JPEG, a smaller bit depth or quantisation:
    "backward pass differentiable approximation" (BPDA; Athalye et al. 2018, section 4.1). The forward pass is
    `preprocess(images)`. The backward pass is the identity, or that of `backward`, a differentiable approximation of
    `preprocess`. Attack `nn.Sequential(straight_through(preprocess), model)`.

    Args:
        preprocess: maps images (n, ...) to images of the same shape, a tensor or an array. It is called without
            gradients, on a copy of the images.
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
            processed = torch.as_tensor(self.preprocess(images.detach().clone())).to(images)
        approximation = images if self.backward is None else self.backward(images.clone())
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
