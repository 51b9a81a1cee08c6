"""One batch under attack: its network, the losses, and the counted queries that an attack may make."""

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
from biotorch.robustness.attacks.norms import size

LossName = Literal["ce", "margin", "dlr"]
Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy per example, -log softmax(z)_y: outputs z (n, C) and labels y (n,) to (n,)."""
    return F.cross_entropy(outputs, labels, reduction="none")


def margin(outputs: Tensor, labels: Tensor) -> Tensor:
    """Margin per example, max_{j≠y} z_j - z_y: outputs z (n, C) and labels y (n,) to (n,)."""
    true = F.one_hot(labels, outputs.shape[1]).bool()
    return outputs.masked_fill(true, -torch.inf).amax(1) - outputs.gather(1, labels[:, None])[:, 0]


def dlr(outputs: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio (DLR) per example: (n,). Raises ValueError for fewer than three classes."""
    if outputs.shape[1] < 3:
        raise ValueError(f"loss 'dlr' needs at least three classes, and there are {outputs.shape[1]}; use 'margin'")
    largest = outputs.topk(3, dim=1).values
    return margin(outputs, labels) / (largest[:, 0] - largest[:, 2]).clamp_min(1e-12)


LOSSES: dict[LossName, Loss] = {"ce": cross_entropy, "margin": margin, "dlr": dlr}


#: Gradient that a white-box attack follows: `true`, the network's own, or `feedback`, the one its rule trains with.
Gradient = Literal["true", "feedback"]


def classified(outputs: Tensor, labels: Tensor) -> Tensor:
    """Whether each row of outputs (n, C) is highest at its label (n,): (n,) bool. False for a row with a NaN."""
    return (outputs.argmax(1) == labels) & ~outputs.isnan().any(1)


def useless(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each image's gradient (m, ...) is not finite, and whether it is zero everywhere: (m,) bool each."""
    largest = size(gradient, "linf")  # not finite if any value is not
    return ~largest.isfinite(), largest == 0


class Attempt:
    """A batch of images with labels, and the network under attack, whose queries are counted.

    Attributes:
        images: (n, ...) in [0, 1]. The network sees every point in their memory format, contiguous or channels_last.
        labels: (n,) int64.
        generator: source of all randomness, on the CPU.
        queries: (n,) forward passes that each image has taken so far.
        blind: (n,) bool, whether some gradient at the image was not finite, or was zero everywhere at a point that is
            classified as labelled.
        losses: one entry per step, the loss (n,) of every image, NaN for images that the step left out.
        clean_outputs: (n, C), outputs at the images themselves.
        clean: (n,) bool, whether each image is classified as labelled.
        judged: whether the caller wants figures in addition to the examples. If not, no pass is spent on them: clean
            outputs are computed only when an attack needs them, and the last point of its steps is not evaluated.
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
        """Outputs (m, C) at points (m, ...), counted as queries. Point j belongs to image `index[j]`.

        Raises:
            ValueError: the network does not return one row of outputs per image, or has none for a label.
        """
        self.queries += index.cpu().bincount(minlength=len(self.queries))
        return self.forward(points)

    def forward(self, points: Tensor) -> Tensor:
        """Outputs (m, C) at the points, not counted. Raises ValueError like `outputs`."""
        if self._channels_last:  # indexing the images has lost the format
            points = points.to(memory_format=torch.channels_last)
        outputs = main_output(self.model(points))
        if outputs.dim() != 2 or len(outputs) != len(points):
            raise ValueError(
                f"attacks need outputs of shape (n, classes), but for {len(points)} images the network returns shape "
                f"{tuple(outputs.shape)}"
            )
        if outputs.shape[1] <= self._largest_label:
            raise ValueError(f"labels: class {self._largest_label} is beyond the network's {outputs.shape[1]} outputs")
        return outputs

    @property
    def clean(self) -> Tensor:
        return classified(self.clean_outputs, self.labels)

    def right(self, points: Tensor, index: Tensor) -> Tensor:
        """Whether each of the points (m, ...) is classified as labelled: (m,) bool."""
        with torch.no_grad():
            return classified(self.outputs(points, index), self.labels[index])

    def gradient(
        self, points: Tensor, index: Tensor, loss: Callable[[Tensor, Tensor], Tensor], kind: Gradient
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient of the loss with respect to the points.

        Args:
            points: (m, ...); point j belongs to image `index[j]`.
            index: (m,), index of each point's image.
            loss: maps outputs (m, C) and labels (m,) to losses (m,).
            kind: `true` or `feedback`.

        Returns:
            The gradient (m, ...), with zeros in place of non-finite values; the losses (m,); the outputs (m, C).
        """
        points, labels = points.detach().requires_grad_(), self.labels[index]
        with torch.enable_grad(), self.route(labels, kind):
            outputs = self.outputs(points, index)
            losses = loss(outputs, labels)
        if losses.requires_grad:  # false if the network detaches its input
            (gradient,) = torch.autograd.grad(losses.sum(), points, allow_unused=True, materialize_grads=True)
        else:
            gradient = torch.zeros_like(points)
        gradient, outputs = gradient.detach(), outputs.detach()
        wild, flat = useless(gradient)
        if bool((wild | flat).any()):
            needed = classified(outputs, labels)  # a misclassified point needs no direction
            self.blind[index[wild | (flat & needed)].cpu()] = True
            gradient = gradient.nan_to_num(0, 0, 0)
        return gradient, losses.detach(), outputs

    @contextlib.contextmanager
    def route(self, labels: Tensor, kind: Gradient) -> Iterator[None]:
        """Context of a forward pass of images with `labels` (m,): selects the gradient, and gives the rule the labels.

        A backward pass from there to the images computes no gradient of a weight.
        """
        asked = true_gradients(self.model) if kind == "true" else _frozen(self.model)
        with asked, teaching.targets(labels, scale=1.0):
            yield

    def record(self, losses: Tensor, index: Tensor) -> None:
        """Keep the losses (m,) of a step, if figures are wanted: a check sees whether they were still rising."""
        if not self.judged:
            return
        row = torch.full((len(self.images),), torch.nan)
        row[index.cpu()] = losses.float().cpu()
        self.losses.append(row)


@contextlib.contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Freeze the parameters of the network inside the `with` block.

    Layers of torch compute only the gradients that a backward pass is asked for, so true gradients do without this (and
    a network may train in its own forward pass). The autograd Functions of the rules, like all that are written in
    Python, compute those of every tensor that required one in the forward pass.
    """
    parameters = [each for each in model.parameters() if each.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


class Normalised(nn.Module):
    """Network that normalises its input first: `model((images - mean) / std)`.

    With it, attacks perturb images in [0, 1] and not their normalised values.

    Args:
        model: takes normalised images (n, C, ...).
        mean, std: mean and standard deviation of each channel, for pixels in [0, 1].

    Raises:
        ValueError: `mean` and `std` are empty or of different lengths, or a `std` is not above 0.

    Examples:
        >>> model = biotorch.robustness.Normalised(nn.Flatten(), mean=[0.5], std=[0.25])
        >>> model(torch.ones(1, 1, 2, 2))
        tensor([[2., 2., 2., 2.]])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if not mean or len(mean) != len(std) or min(std) <= 0:
            raise ValueError(
                f"mean and std: need one number per channel, and std above 0; got {list(mean)} and {list(std)}"
            )
        self.model = model
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        shape = (1, -1, *[1] * (images.dim() - 2))
        mean, std = (each.to(images).view(shape) for each in (self.mean, self.std))
        outputs: Tensor = self.model((images - mean) / std)
        return outputs
