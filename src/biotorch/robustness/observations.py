"""Observations of a network before it is attacked, from which checks are made."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from biotorch.robustness.smoothness import precision

#: What a network's outputs are, by their values.
Outputs = Literal["logits", "log-probabilities", "probabilities", "values from 0 to 1"]

#: What changes between two passes of the same images, whose outputs should be equal.
Change = Literal["repeated", "shuffled", "alone", "recorded", "attacked", "unseen"]

#: Where a gradient is compared with finite differences: at the images, or at the end of a short attack.
Place = Literal["clean", "attacked"]


@dataclasses.dataclass(frozen=True)
class Difference:
    """Difference between two passes of the same images.

    Attributes:
        largest: largest difference of an output.
        excess: largest quotient of a difference and the rounding that it may have; above 1 the outputs differ.
    """

    largest: float
    excess: float

    @classmethod
    def between(cls, one: Tensor, other: Tensor, model: nn.Module) -> Difference:
        """Difference of outputs (n, C). Rounding may be 1/10,000 of a row's values, and more in half precision."""
        share = max(1e-4, 16 * precision(one, model))
        one, other = one.double(), other.double()
        same = (one == other) | (one.isnan() & other.isnan())
        size = one.abs().nan_to_num(0, 0, 0)
        apart = (one - other).abs().masked_fill(same, 0).nan_to_num(torch.inf)
        rounding = share * (1 + size + size.median(1, keepdim=True).values)
        return cls(float(apart.max()), float((apart / rounding).max()))

    def __or__(self, other: Difference) -> Difference:
        return Difference(max(self.largest, other.largest), max(self.excess, other.excess))


@dataclasses.dataclass(frozen=True)
class Look:
    """Observations of a network at n images.

    Attributes:
        clean: (n,) bool, whether each image is classified as labelled without an attack.
        guessing: accuracy (%) of always predicting the most frequent label.
        cosine: mean cosine between the true and the feedback gradient, over the correctly classified images.
        outputs: what the outputs are, by their values.
        not_numbers: number of images for which an output is NaN.
        differences: differences between passes of the same images, by what changes between them.
        slopes: by place, the number of images where the gradient disagrees with finite differences, and the number of
            those where the two could be compared.
        jumps: number of images on whose way to an image of another class the margin jumps, and number of comparisons.
        rises: number of images where a short attack reaches a higher margin than random signs, and where a lower one.
        snaps: share of the images that, slightly changed, get exactly the same outputs.
        differentiates: whether the network runs a backward pass in its forward pass.
        seconds: duration of a forward and of a backward pass, per image.
    """

    clean: Tensor
    guessing: float
    cosine: float
    outputs: Outputs
    not_numbers: int
    differences: Mapping[Change, Difference]
    slopes: Mapping[Place, tuple[int, int]]
    jumps: tuple[int, int]
    rises: tuple[int, int]
    snaps: float
    differentiates: bool
    seconds: tuple[float, float]

    @property
    def noisy(self) -> bool:
        """Whether two passes of the same images differ."""
        return self.differs("repeated")

    def differs(self, change: Change) -> bool:
        """Whether a change makes the outputs differ by more than rounding, and clearly more than repetition does."""
        found, repeated = self.differences[change], self.differences["repeated"]
        return found.excess > (1 if change == "repeated" else max(1, 3 * repeated.excess))
