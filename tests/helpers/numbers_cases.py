"""Small data sets of numbers in memory, for classes and for regressions."""

from __future__ import annotations

import torch
from torch import Tensor

from biotorch.data.features import FeatureSplit, Scale
from biotorch.data.loading import Dataset

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
    return _dataset(x, y, targets, Scale((0.0,) * targets, STD[:targets]))


def sequences(per_step: bool = False, examples: int = 200, steps: int = 5) -> Dataset:
    """Sequences (5, 3) of two classes: whether the running sum of the first feature is positive, at its end or always.

    The last step alone says little of the sum.
    """
    x = torch.randn(examples, steps, 3, generator=torch.Generator().manual_seed(0))
    positive = (x[:, :, 0].cumsum(1) > 0).long()
    return _dataset(x, positive if per_step else positive[:, -1], 2)


_CLASSES = Scale()


def _dataset(x: Tensor, y: Tensor, outputs: int, scale: Scale = _CLASSES) -> Dataset:
    two, five = len(x) * 2 // 3, len(x) * 5 // 6
    parts = [FeatureSplit(x[part], y[part]) for part in (slice(0, two), slice(two, five), slice(five, None))]
    record = {"dataset": "numbers", **scale.record}
    return Dataset(*parts, outputs, (), (), record, scale.task, scale.mean, scale.std, "features")
