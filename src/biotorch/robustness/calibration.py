"""Calibration of a network: whether its confidence agrees with its accuracy."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from biotorch.robustness.attacks.attempt import classified, outputs_of
from biotorch.robustness.attacks.inputs import read_pair, require, require_counts, require_network
from biotorch.robustness.attacks.wrappers import Detector

#: Number of bins of a calibration error, as in Guo et al. (2017).
BINS = 15


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Agreement of the confidence of a network with its accuracy; all figures but `n` are in percent.

    Attributes:
        n: number of images.
        accuracy: share of the images that are classified as labelled.
        confidence: mean confidence, which is the largest probability. Above the accuracy: overconfident.
        ece: expected calibration error (Guo et al. 2017, equation 3): mean distance between accuracy and mean
            confidence over bins of equal width, weighted by the images in each.
        bins: number of images, accuracy and mean confidence of each bin with images, in the order of the confidence.

    Examples:
        >>> found = biotorch.robustness.Calibration.of(torch.tensor([[0.8, 0.2], [0.8, 0.2]]), torch.tensor([0, 1]))
        >>> found.accuracy, round(found.confidence), round(found.ece)
        (50.0, 80, 30)
    """

    n: int
    accuracy: float
    confidence: float
    ece: float
    bins: list[tuple[int, float, float]]

    @classmethod
    def of(cls, outputs: Tensor, labels: Tensor, bins: int = BINS) -> Calibration:
        """Calibration of outputs (n, C), logits or probabilities, for labels (n,). A row with a NaN counts as wrong."""
        outputs = outputs.double()
        is_probability = bool((outputs >= 0).all()) and bool(((outputs.sum(1) - 1).abs() < 1e-4).all())
        probabilities = outputs if is_probability else outputs.softmax(1)
        confidence = 100 * probabilities.amax(1).nan_to_num(0.0)
        right = 100 * classified(outputs, labels).double()
        number = (confidence * bins / 100).ceil().clamp(1, bins)  # the upper edge of a bin belongs to it
        parts = [(confidence[number == each], right[number == each]) for each in range(1, bins + 1)]
        found = [(len(sure), float(hits.mean()), float(sure.mean())) for sure, hits in parts if len(sure)]
        ece = sum(count * abs(accuracy - mean) for count, accuracy, mean in found) / len(labels)
        return cls(len(labels), float(right.mean()), float(confidence.mean()), ece, found)

    @property
    def sentence(self) -> str:
        """Sentence with the mean confidence, the accuracy and the error."""
        return (
            f"Calibration: {self.confidence:.1f} % mean confidence at {self.accuracy:.1f} % accuracy; expected "
            f"calibration error {self.ece:.1f} %."
        )

    def __str__(self) -> str:
        return self.sentence

    def to_json(self) -> dict[str, Any]:
        """Figures as plain values, for strict JSON."""
        return {**vars(self), "sentence": self.sentence, "bins": [list(each) for each in self.bins]}


def calibration(
    model: nn.Module, data: tuple[Any, Any] | Iterable[Any], *, bins: int = BINS, batch_size: int = 250
) -> Calibration:
    """Measure how well a network's confidence agrees with its accuracy.

    Args:
        model: maps images to outputs (n, C), logits or probabilities. It may be converted by `biotorch.convert` or not.
        data: images (n, ...) in [0, 1] and labels (n,), as tensors or arrays; or a DataLoader.
        bins: number of bins of equal width between 0 and 100 % confidence.
        batch_size: number of images evaluated at once.

    Raises:
        ValueError: data or another argument are unusable, or the network has a reject class (`Detector`).

    Examples:
        >>> images, model = torch.rand(20, 1, 8, 8), nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> found = biotorch.robustness.calibration(model, (images, model(images).argmax(1)))
        >>> found.accuracy, found.confidence < 50, found.ece > 50  # right everywhere, and not sure of it
        (100.0, True, True)
    """
    require_network(model)
    require(
        not any(isinstance(each, Detector) for each in model.modules()),
        "model: the confidence of a Detector in its reject class cannot be compared with labels; measure the network "
        "that it guards",
    )
    images, labels = read_pair(data, gradients=False)
    require_counts(bins=bins, batch_size=batch_size)
    [outputs] = outputs_of([model], images, labels, batch_size)
    return Calibration.of(outputs, labels.cpu(), bins)
