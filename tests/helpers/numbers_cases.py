"""Small data sets of numbers in memory, for classes and for regressions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from biotorch.data.loading import Dataset
from biotorch.data.splits import Split


@dataclasses.dataclass(frozen=True, eq=False)
class Numbers(Split):
    """Inputs (N, *shape) float32 with labels of any kind."""

    inputs: Tensor
    labels: Tensor

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.inputs.shape[1:])

    def to(self, device: torch.device) -> Numbers:
        return Numbers(self.inputs.to(device), self.labels.to(device))

    def batches(self, parts: Iterable[Tensor], augmentation: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        for part in parts:
            yield self.inputs[part], self.labels[part]


#: Standard deviations of the targets in original units, which differ by much.
STD = (0.5, 20.0, 3000.0)


def regression(targets: int = 1, examples: int = 300) -> Dataset:
    """Six features, and targets that a small network predicts well: R² of a linear fit is about 0.6."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(examples, 6, generator=generator)
    mixed = torch.randn(6, targets, generator=generator)
    y = torch.tanh(x @ mixed) + 0.5 * x[:, :1] * x[:, 1:2] + 0.1 * torch.randn(examples, targets, generator=generator)
    train = slice(0, examples * 2 // 3)
    y = (y - y[train].mean(0)) / y[train].std(0)
    return _dataset(x, y, targets, task="regression", target_mean=(0.0,) * targets, target_std=STD[:targets])


def sequences(per_step: bool = False, examples: int = 200, steps: int = 5) -> Dataset:
    """Sequences (5, 3) of two classes: whether the running sum of the first feature is positive, at its end or always.

    The last step alone says little of the sum.
    """
    x = torch.randn(examples, steps, 3, generator=torch.Generator().manual_seed(0))
    positive = (x[:, :, 0].cumsum(1) > 0).long()
    return _dataset(x, positive if per_step else positive[:, -1], 2)


def _dataset(x: Tensor, y: Tensor, outputs: int, **more) -> Dataset:
    two, sixths = len(x) * 2 // 3, len(x) * 5 // 6
    parts = [Numbers(x[part], y[part]) for part in (slice(0, two), slice(two, sixths), slice(sixths, None))]
    return Dataset(*parts, outputs, (), (), {"dataset": "numbers"}, **more)
