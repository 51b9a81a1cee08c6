"""One batch under attack: its network, the losses, and the counted queries that an attack may make."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from biotorch import _seeding
from biotorch.kernel import teaching
from biotorch.layers import true_gradients
from biotorch.layers.networks import isolated
from biotorch.models.outputs import logits_of
from biotorch.robustness.attacks.inputs import TargetName, device_of, floating_type, require
from biotorch.robustness.attacks.losses import LOSSES, TARGETED, Loss, LossName
from biotorch.robustness.attacks.norms import size

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

    With a reject class (`abstain`), attacks see outputs in which the class is merged into each image's label: its
    column is left out, and z_y becomes max(z_y, z_abstain). A point is then classified as labelled where the network
    does so or rejects it, and every loss falls only where both outputs do.

    Attributes:
        images: (n, ...) in [0, 1]. The network sees every point in their memory format, contiguous or channels_last,
            in its own floating-point type.
        labels: (n,) int64, columns of the outputs. (They are the classes, except beyond a reject class.)
        classes: (n,) int64, labels as the network has them.
        targets: (n,) int64, the class that each image shall be classified as, or None.
        everyone: (n,) int64, the index of every image.
        generator: source of all randomness, on the CPU.
        queries: (n,) forward passes that each image has taken so far.
        blind: (n,) bool, whether some gradient at the image was not finite, or was zero everywhere at a point that
            withstands.
        losses: one entry per step, the loss (n,) of every image, NaN for images that the step left out.
        clean_outputs: (n, C), outputs at the images themselves.
        width: number of the network's outputs, with a reject class.
        clean: (n,) bool, whether each image is classified as labelled; a rejected one is not.
        unbroken: (n,) bool, whether an attack has something to do: the image is classified as labelled or, if there are
            targets, not yet as its target.
        judged: whether the caller wants figures in addition to the examples. If not, no pass is spent on them: clean
            outputs are computed only when an attack needs them, and the last point of its steps is not evaluated.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        generator: torch.Generator,
        judged: bool = True,
        abstain: int | None = None,
        targets: Tensor | TargetName | None = None,
    ) -> None:
        self.model, self.images, self.classes, self.generator = model, images, labels, generator
        self.queries = torch.zeros(len(images), dtype=torch.int64)
        self.blind = torch.zeros(len(images), dtype=torch.bool)
        self.losses: list[Tensor] = []
        self.everyone = torch.arange(len(images), device=images.device)
        self.judged, self.abstain = judged, abstain
        # A target needs every output: what is rejected is not classified as the target.
        self._merges = abstain is not None and targets is None
        self.labels = labels - (labels > abstain).long() if abstain is not None and self._merges else labels
        self._highest = {"labels": int(labels.max()), "abstain": -1 if abstain is None else abstain}
        self._channels_last = images.stride(1) == 1 and images.is_contiguous(memory_format=torch.channels_last)
        self._dtype = floating_type(model) or images.dtype
        if judged:
            _ = self._clean  # before anything else draws noise in the network
        self.targets = self._chosen(targets) if isinstance(targets, str) else targets
        if self.targets is not None:
            self._highest["targets"] = int(self.targets.max())

    @functools.cached_property
    def _clean(self) -> Tensor:
        """Outputs (n, C) at the images, with the reject class."""
        with torch.no_grad():
            return self._all_outputs(self.images)

    @functools.cached_property
    def repeats(self) -> bool:
        """Whether a second pass of some images gives the same outputs; it is not counted as a query."""
        with torch.no_grad():
            again = self._all_outputs(self.images[:8])
        return torch.allclose(again, self._clean[:8], atol=1e-4, rtol=1e-3, equal_nan=True)

    @property
    def clean_outputs(self) -> Tensor:
        return self._merged(self._clean, self.everyone)

    @property
    def width(self) -> int:
        return self._clean.shape[1]

    def _chosen(self, name: TargetName) -> Tensor:
        """Target (n,) of each image by name: any class but its label and the reject class."""
        barred = F.one_hot(self.classes, self.width).bool()
        if self.abstain is not None:
            barred[:, self.abstain] = True
        if name == "random":
            ranks = torch.rand(barred.shape, generator=self.generator).to(self.images.device)
        else:
            ranks = -self._clean if name == "least_likely" else self._clean
        return ranks.masked_fill(barred, -torch.inf).argmax(1)

    def outputs(self, points: Tensor, index: Tensor) -> Tensor:
        """Outputs (m, C) at points (m, ...), counted as queries. Point j belongs to image `index[j]`.

        Raises:
            ValueError: the network does not return one row of outputs per image, or has none for a label.
        """
        self.queries += index.cpu().bincount(minlength=len(self.queries))
        return self.forward(points, index)

    def forward(self, points: Tensor, index: Tensor | None) -> Tensor:
        """Outputs (m, C) at the points, not counted. Raises ValueError like `outputs`.

        If `index` is None (the library does not say whose points they are), a reject class is left out of the outputs.
        """
        return self._merged(self._all_outputs(points), index)

    def _all_outputs(self, points: Tensor) -> Tensor:
        if self._channels_last:  # indexing the images has lost the format
            points = points.to(memory_format=torch.channels_last)
        outputs = logits_of(self.model(points.to(self._dtype, copy=True)))  # the network may write into them
        if outputs.dim() != 2 or len(outputs) != len(points):
            raise ValueError(
                f"attacks need outputs of shape (n, classes), but for {len(points)} images the network returns shape "
                f"{tuple(outputs.shape)}"
            )
        for name, highest in self._highest.items():
            require(
                highest < outputs.shape[1],
                f"{name}: class {highest} is beyond the network's {outputs.shape[1]} outputs",
            )
        return outputs.float() if outputs.dtype in (torch.float16, torch.bfloat16) else outputs

    def _merged(self, outputs: Tensor, index: Tensor | None) -> Tensor:
        """Outputs (m, C) in which the reject class is merged into the label of each image."""
        if not self._merges:
            return outputs
        kept = torch.cat([outputs[:, : self.abstain], outputs[:, self.abstain :][:, 1:]], 1)
        if index is None:
            return kept
        rejected, own = outputs[:, self.abstain].unsqueeze(1), self.labels[index].unsqueeze(1)
        return kept.scatter(1, own, torch.maximum(kept.gather(1, own), rejected))

    @property
    def clean(self) -> Tensor:
        return classified(self._clean, self.classes)

    @property
    def unbroken(self) -> Tensor:
        return self.clean if self.targets is None else ~classified(self._clean, self.targets)

    def withstand(self, outputs: Tensor, index: Tensor) -> Tensor:
        """Whether the outputs (m, C) of images `index` leave the attack without success: (m,) bool."""
        if self.targets is None:
            return classified(outputs, self.labels[index])
        return ~classified(outputs, self.targets[index])

    def right(self, points: Tensor, index: Tensor) -> Tensor:
        """Whether each of the points (m, ...) withstands: (m,) bool."""
        with torch.no_grad():
            return self.withstand(self.outputs(points, index), index)

    def loss(self, name: LossName, index: Tensor) -> Loss:
        """Loss that an attack on the images `index` (m,) raises: a function of outputs (m, C) and labels (m,)."""
        if self.targets is None:
            return LOSSES[name]
        towards, targets = TARGETED[name], self.targets[index]
        return lambda outputs, labels: towards(outputs, labels, targets)

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
        with torch.enable_grad(), self.route(self.classes[index], kind):
            outputs = self.outputs(points, index)
            losses = loss(outputs, labels)
        if losses.requires_grad:  # false if the network detaches its input
            ones = torch.ones_like(losses)
            (gradient,) = torch.autograd.grad(losses, points, ones, allow_unused=True, materialize_grads=True)
        else:
            gradient = torch.zeros_like(points)
        gradient, outputs = gradient.detach(), outputs.detach()
        wild, flat = useless(gradient)
        if bool((wild | flat).any()):
            needed = self.withstand(outputs, index)  # a broken point needs no direction
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


@contextlib.contextmanager
def unseen(model: nn.Module) -> Iterator[None]:
    """Context that puts the network into eval mode, and restores its modes and its state afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with isolated(model):
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def outputs_of(
    networks: Sequence[nn.Module],
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    change: Callable[[Tensor, int], Tensor] = lambda batch, start: batch,
) -> list[Tensor]:
    """Outputs (n, C) of each network, as attacks see them, for images that `change` has changed, on the CPU.

    Raises:
        ValueError: a network's outputs have another shape, or none for a label.
    """
    found: list[list[Tensor]] = [[] for _ in networks]
    for start in range(0, len(images), batch_size):
        batch = change(images[start : start + batch_size], start)
        for network, outputs in zip(networks, found, strict=True):
            with unseen(network):
                device, part = device_of(network, batch), labels[start : start + batch_size]
                attempt = Attempt(network, batch.to(device), part.to(device), _seeding.generator(0))
                outputs.append(attempt.clean_outputs.cpu())
    return [torch.cat(outputs) for outputs in found]
