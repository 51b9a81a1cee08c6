"""Adversarial training: the network learns from examples made against it as it is at that update."""

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


#: How far rounding may take a pixel out of [0, 1] when its normalisation is undone.
_ROUNDING = 1e-4

#: YAML reads an unquoted `true` as a boolean.
_GradientName = Annotated[
    Gradient,
    BeforeValidator(lambda value: "true" if value is True else value),
    WithJsonSchema({"enum": ["true", "feedback", True]}),
]


class AdversarialConfig(Section):
    """`training.adversarial`: train on examples perturbed by PGD (Madry et al. 2018) instead of the images."""

    epsilon: Epsilon
    """Radius of the ball around each image, of pixels in [0, 1]: a number, or a fraction such as 8/255."""
    steps: int = Field(default=7, ge=1, le=10**9)
    """Steps of PGD; each costs one forward and one backward pass more per update."""
    step_size: Annotated[Epsilon, Field(gt=0)] | None = None
    """Default: 2.5 epsilon / steps."""
    gradient: _GradientName = "true"
    """`true`: the network's own, which an attacker has. It transports weights into the examples, not into the learning
    rule. `feedback`: what the rule sends back to the image in its place, which avoids even that; but a network trained
    so is defended against that gradient alone."""
    norm: Norm = "linf"
    """Of the ball: linf, each pixel by itself; l2, the whole image."""
    random_start: bool = True
    """Start at a random point of the ball instead of the image."""

    @model_validator(mode="after")
    def _within_the_cube(self) -> AdversarialConfig:
        if self.norm == "linf" and self.epsilon > 1:
            text = f"{self.epsilon:g} is more than any pixel can change: they lie in [0, 1], write a fraction of 255"
            raise SectionError({"epsilon": text})
        return self


class Adversary:
    """Makes adversarial examples of the batches that a network trains on, against that network.

    PGD with all of its steps: x_{t+1} = Π(x_t + alpha sign(∇_x L(f(x_t), y))), see `biotorch.robustness.PGD`; L is
    the cross-entropy of the main output, whatever loss is trained on. Deviations from Madry et al.: the network is
    in eval mode while they are made, as TRADES has it (Zhang et al. 2019), so that statistics of batches and
    dropout are those of training on the examples alone; and there is a choice of the gradient.

    The network is left as it was, its gradients and the global random state included. The random starts are a
    function of the seed, the place of the batch in the training and the process.

    Args:
        config: the `training.adversarial` section.
        model: takes normalised images; no wrapper around it, which would reduce gradients between processes.
        data: the images' normalisation.
        fabric: of the training: its precision and its processes.
        seed: of the training.

    Raises:
        SectionError: the data are no images with one label each.
    """

    def __init__(self, config: AdversarialConfig, model: nn.Module, data: Dataset, fabric: Fabric, seed: int) -> None:
        if not data.mean or data.train.per_token:
            text = "examples are made of images with one label each, and the training set has none: leave it out"
            raise SectionError({"adversarial": text})
        self.data, self.fabric, self.seed = data, fabric, seed
        self.network = Normalised(model, data.mean, data.std)
        self.mean, self.std = (
            torch.tensor(each, device=fabric.device).view(-1, 1, 1) for each in (data.mean, data.std)
        )
        self.settings: dict[str, Any] = {**dict(config), "stop_at_success": False}

    def __call__(self, inputs: Tensor, labels: Tensor, *place: int) -> Tensor:
        """Adversarial examples (n, C, H, W) for normalised images (n, C, H, W) with labels (n,) int64.

        Args:
            place: of the batch in the training, by any numbers: equal ones give equal random starts.

        Raises:
            DataError: the images do not lie in [0, 1] without their normalisation.
        """
        seed = _seeding.derive(self.seed, "adversarial", *place, self.fabric.global_rank)
        attack = PGD(self.network, batch_size=len(inputs), seed=seed, **self.settings)
        images = self._pixels(inputs)
        with self.fabric.autocast():
            change = attack(images, labels) - images
        # Added in place: where nothing changes it is the same to the bit, and the strides stay, too, which an image of
        # one channel would lose. Convolutions round by them.
        return inputs.clone().add_(change / self.std)

    def _pixels(self, inputs: Tensor) -> Tensor:
        pixels = inputs * self.std + self.mean
        images = pixels.clamp(0, 1)
        if not float((pixels - images).abs().max()) <= _ROUNDING:
            raise DataError(
                f"training.adversarial: without their normalisation (mean {self.data.mean}, std {self.data.std}) the "
                f"training images have values from {float(pixels.min()):.4g} to {float(pixels.max()):.4g}, and values "
                "from 0 to 1 are needed"
            )
        return images
