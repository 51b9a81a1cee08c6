"""Adversarial training: at every update, the network learns from examples that attack its present weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator
from torch import Tensor, nn

from biotorch import _seeding
from biotorch._sections import Epsilon, Section
from biotorch.data import DataError, Dataset
from biotorch.errors import SectionError
from biotorch.robustness import PGD, Normalised
from biotorch.robustness.attacks.attempt import Gradient
from biotorch.robustness.attacks.norms import Norm

if TYPE_CHECKING:
    from lightning_fabric import Fabric


#: Largest distance of a pixel from [0, 1] that counts as a rounding error of undoing the normalisation.
_ROUNDING = 1e-4

#: YAML reads an unquoted `true` as a boolean.
_GradientName = Annotated[
    Gradient,
    BeforeValidator(lambda value: "true" if value is True else value),
    WithJsonSchema({"enum": ["true", "feedback", True]}),
]


class AdversarialConfig(Section):
    """`training.adversarial`: train on examples perturbed by PGD (Madry et al. 2018) instead of the images.

    Examples:
        >>> biotorch.training.AdversarialConfig(epsilon="8/255", steps=3).epsilon
        0.03137254901960784
    """

    epsilon: Epsilon
    """Radius of the ball around each image, for pixels in [0, 1]: a number, or a fraction such as 8/255."""
    steps: int = Field(default=7, ge=1, le=10**9)
    """Steps of PGD; each adds one forward and one backward pass to an update."""
    step_size: Annotated[Epsilon, Field(gt=0)] | None = None
    """Length of a step of PGD; default: 2.5 epsilon / steps."""
    gradient: _GradientName = "true"
    """Gradient that PGD follows. `true`: the true gradient, which an attacker has, too. It transports weights into the
    examples, but not into the learning rule. `feedback`: the rule's gradient, which transports none; but it defends the
    network against attacks by this gradient only."""
    norm: Norm = "linf"
    """Norm of the ball: linf limits the change of each pixel, l2 and l1 the change of the whole image."""
    random_start: bool = True
    """Start at a random point of the ball instead of the image."""

    @model_validator(mode="after")
    def _within_the_cube(self) -> AdversarialConfig:
        if self.norm == "linf" and self.epsilon > 1:
            text = f"{self.epsilon:g} is too large: pixels lie in [0, 1]; give a fraction such as 8/255"
            raise SectionError({"epsilon": text})
        return self


class Adversary:
    """Turns each training batch into adversarial examples against the network that trains on it.

    It always runs all steps of PGD: x_{t+1} = Π(x_t + alpha sign(∇_x L(f(x_t), y))), see `biotorch.robustness.PGD`. L
    is the cross-entropy of the main output, whatever the training loss is. Deviations from Madry et al.: the network is
    in eval mode while the examples are made, as in TRADES (Zhang et al. 2019), so that only the training step changes
    batch statistics and draws dropout masks; and the gradient can be chosen.

    The network, its gradients and the global random state are left unchanged. The random starts are a function of the
    seed, the position of the batch in the training and the process.

    Args:
        config: the `training.adversarial` section.
        model: network for normalised images, without a DDP wrapper, which would reduce gradients between processes.
        data: dataset whose normalisation the images have.
        fabric: the Fabric of the training, which sets precision and processes.
        seed: seed of the training.

    Raises:
        SectionError: the data are not images with one label each.
    """

    def __init__(self, config: AdversarialConfig, model: nn.Module, data: Dataset, fabric: Fabric, seed: int) -> None:
        if not data.mean or data.train.labels.dim() > 1:
            text = "images with one class each are needed, but the training set has none: leave it out"
            raise SectionError({"adversarial": text})
        self.data, self.fabric, self.seed = data, fabric, seed
        self.network = Normalised(model, data.mean, data.std)
        self.mean, self.std = (
            torch.tensor(each, device=fabric.device).view(-1, 1, 1) for each in (data.mean, data.std)
        )
        self.settings: dict[str, Any] = {**dict(config), "stop_at_success": False}

    def __call__(self, inputs: Tensor, labels: Tensor, *place: int) -> Tensor:
        """Make adversarial examples (n, C, H, W) of normalised images (n, C, H, W) with labels (n,) int64.

        Args:
            place: numbers that identify the batch in the training; equal numbers give equal random starts.

        Raises:
            DataError: without their normalisation, the images do not lie in [0, 1].
        """
        seed = _seeding.derive(self.seed, "adversarial", *place, self.fabric.global_rank)
        attack = PGD(self.network, batch_size=len(inputs), seed=seed, **self.settings)
        attack.warns = False  # of saturated gradients, at every batch
        images = self._pixels(inputs)
        with self.fabric.autocast():
            change = attack(images, labels) - images
        # Added in place, so that a change of zero leaves the same bits. The strides stay, too, on which the rounding of
        # convolutions depends; images of one channel would lose them otherwise.
        return inputs.clone().add_(change / self.std)

    def _pixels(self, inputs: Tensor) -> Tensor:
        pixels = inputs * self.std + self.mean
        images = pixels.clamp(0, 1)
        if not float((pixels - images).abs().max()) <= _ROUNDING:
            raise DataError(
                f"training.adversarial: without their normalisation (mean {self.data.mean}, std {self.data.std}) the "
                f"training images have values from {float(pixels.min()):.4g} to {float(pixels.max()):.4g}, but need "
                "values from 0 to 1"
            )
        return images
