"""One batch under attack: the network, the losses, and what an attack may ask and what it costs."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from biotorch.kernel import teaching
from biotorch.layers import true_gradients
from biotorch.models.outputs import main_output

LossName = Literal["ce", "margin", "dlr"]
Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(z)_y."""
    return F.cross_entropy(outputs, labels, reduction="none")


def margin(outputs: Tensor, labels: Tensor) -> Tensor:
    """max_{j≠y} z_j - z_y."""
    true = F.one_hot(labels, outputs.shape[1]).bool()
    return outputs.masked_fill(true, -torch.inf).amax(1) - outputs.gather(1, labels[:, None])[:, 0]


def dlr(outputs: Tensor, labels: Tensor) -> Tensor:
    """The difference of logits ratio. Raises ValueError for fewer than three classes."""
    if outputs.shape[1] < 3:
        raise ValueError(f"loss 'dlr' needs at least three classes, and there are {outputs.shape[1]}: take 'margin'")
    largest = outputs.topk(3, dim=1).values
    return margin(outputs, labels) / (largest[:, 0] - largest[:, 2]).clamp_min(1e-12)


LOSSES: dict[LossName, Loss] = {"ce": cross_entropy, "margin": margin, "dlr": dlr}


#: The gradient that a white-box attack follows: that of the network itself, or the one that its rule trains with.
Gradient = Literal["true", "feedback"]


def classified(outputs: Tensor, labels: Tensor) -> Tensor:
    """Whether each row of outputs (n, C) is highest at its label (n,); a row with a NaN is not."""
    return (outputs.argmax(1) == labels) & ~outputs.isnan().any(1)


class Attempt:
    """A batch of images, their labels, and the network, which answers questions and counts them.

    Attributes:
        images: (n, ...) in [0, 1]. The network sees every point in their memory format, contiguous or channels_last.
        labels: (n,) int64.
        generator: of all randomness, on the CPU.
        queries: (n,) forward passes that each image has taken so far.
        blind: (n,) where a gradient was asked for and was not finite, or zero everywhere at a point that is classified
            as labelled.
        losses: per step the loss (n,) of every image, NaN where it was not looked at.
        clean_outputs: (n, C), those at the images themselves.
        clean: (n,) whether each image is classified as its label says.
        judged: whether figures are wanted beside the examples. Where they are not, no pass is spent on them: clean
            outputs come when an attack asks for them, and the last point of its steps is not looked at.
    """

    def __init__(
        self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, judged: bool = True
    ) -> None:
        self.model, self.images, self.labels, self.generator = model, images, labels, generator
        self.queries = torch.zeros(len(images), dtype=torch.int64)
        self.blind = torch.zeros(len(images), dtype=torch.bool)
        self.losses: list[Tensor] = []
        self.judged = judged
        self._largest_label = int(labels.max())
        self._channels_last = images.stride(1) == 1 and images.is_contiguous(memory_format=torch.channels_last)
        if judged:
            _ = self.clean_outputs  # before anything else draws noise in the network

    @functools.cached_property
    def clean_outputs(self) -> Tensor:
        with torch.no_grad():
            return self.forward(self.images)

    def outputs(self, points: Tensor, index: Tensor) -> Tensor:
        """Outputs (m, C) at points (m, ...), the j-th of which belongs to image `index[j]`.

        Raises:
            ValueError: the network does not return one row of outputs per image, or has none for a label.
        """
        self.queries += index.cpu().bincount(minlength=len(self.queries))
        return self.forward(points)

    def forward(self, points: Tensor) -> Tensor:
        """Outputs (m, C) at the points, uncounted. Raises ValueError as `outputs`."""
        if self._channels_last:  # choosing among images has lost it
            points = points.to(memory_format=torch.channels_last)
        outputs = main_output(self.model(points))
        if outputs.dim() != 2 or len(outputs) != len(points):
            raise ValueError(
                f"attacks need outputs of shape (n, classes), and for {len(points)} images the network returns "
                f"{tuple(outputs.shape)}"
            )
        if outputs.shape[1] <= self._largest_label:
            raise ValueError(f"labels: class {self._largest_label} is beyond the network's {outputs.shape[1]} outputs")
        return outputs

    @property
    def clean(self) -> Tensor:
        return classified(self.clean_outputs, self.labels)

    def right(self, points: Tensor, index: Tensor) -> Tensor:
        """Whether each of the points (m, ...) is classified as its label says: (m,)."""
        with torch.no_grad():
            return classified(self.outputs(points, index), self.labels[index])

    def gradient(
        self, points: Tensor, index: Tensor, loss: Callable[[Tensor, Tensor], Tensor], kind: Gradient
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of the loss with respect to the points.

        Args:
            points: (m, ...), the j-th of which belongs to image `index[j]`.
            index: (m,).
            loss: of outputs (m, C) and labels (m,), per example.
            kind: whose gradient.

        Returns:
            The gradient (m, ...), zero where it is not finite; the losses (m,); the outputs (m, C).
        """
        points = points.detach().requires_grad_()
        with torch.enable_grad(), self.route(index, kind):
            outputs = self.outputs(points, index)
            losses = loss(outputs, self.labels[index])
        gradient = torch.zeros_like(points)
        if losses.requires_grad:  # not in a network that detaches its input
            (gradient,) = torch.autograd.grad(losses.sum(), points, allow_unused=True, materialize_grads=True)
        flat = gradient.detach().flatten(1)
        finite = flat.isfinite().all(1)
        needed = classified(outputs.detach(), self.labels[index])  # what is misclassified needs no direction
        self.blind[index.cpu()] |= (~finite | (needed & (flat == 0).all(1))).cpu()
        return gradient.detach().nan_to_num(0, 0, 0), losses.detach(), outputs.detach()

    @contextlib.contextmanager
    def route(self, index: Tensor, kind: Gradient) -> Iterator[None]:
        """Around a forward pass of images `index`: the gradient asked for, and the labels, which a rule may send."""
        asked = true_gradients(self.model) if kind == "true" else contextlib.nullcontext()
        with asked, teaching.targets(self.labels[index], scale=1.0):
            yield

    def record(self, losses: Tensor, index: Tensor) -> None:
        """Keep the losses (m,) of a step, to see later whether they were still rising."""
        row = torch.full((len(self.images),), torch.nan)
        row[index.cpu()] = losses.float().cpu()
        self.losses.append(row)


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
