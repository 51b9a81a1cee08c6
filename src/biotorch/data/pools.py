"""What is read from a source, before it is split: training and test examples, in memory or as paths."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from biotorch import seeding
from biotorch.data.errors import DataError
from biotorch.data.images import Normalisation, resize


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """Images (N, H, W, C) uint8 and labels (N,) int64, on the CPU."""

    pixels: Tensor
    labels: Tensor

    def __getitem__(self, index: Tensor) -> Images:
        return Images(self.pixels[index], self.labels[index])


@dataclasses.dataclass(frozen=True, eq=False)
class Paths:
    """Paths (N,) of image files, relative to `root`, and labels (N,) int64."""

    root: Path
    #: One array of bytes: of a list of strings, every worker process would soon hold a copy of its own.
    paths: NDArray[np.bytes_]
    labels: Tensor

    def __getitem__(self, index: Tensor) -> Paths:
        return Paths(self.root, self.paths[index.numpy()], self.labels[index])

    def full(self, index: int) -> str:
        """The whole path of one file."""
        return os.path.join(self.root, os.fsdecode(self.paths[index]))


@dataclasses.dataclass(frozen=True, eq=False)
class Pool:
    """A whole source. It is kept for the next experiment on the same data, so nobody may write to it."""

    train: Images | Paths
    test: Images | Paths
    num_classes: int
    normalisation: Normalisation


def in_memory(
    train: Images, test: Images, target_size: int | None, name: str, normalisation: Normalisation | None = None
) -> Pool:
    """A pool of images, resized; without a known normalisation, that of the training images is measured.

    Raises DataError, with `name` in it, if images of the two parts differ in shape or there are none.
    """
    for part, images in (("training", train), ("test", test)):
        if not len(images.labels):
            raise DataError(f"{name} has no {part} images.")
    train, test = (Images(resize(part.pixels, target_size), part.labels) for part in (train, test))
    shapes = [tuple(part.pixels.shape[1:]) for part in (train, test)]
    if shapes[0] != shapes[1]:
        raise DataError(
            f"{name}: training images are {shapes[0]} (height, width, channels), test images {shapes[1]}. "
            "Set data.target_size if only height and width differ."
        )
    return Pool(train, test, classes(train.labels, test.labels), normalisation or Normalisation.measured(train.pixels))


def classes(train: Tensor, test: Tensor) -> int:
    """One more than the greatest label of both parts."""
    return int(max(train.max(), test.max())) + 1


def labels(found: NDArray[np.generic], name: str) -> Tensor:
    """Labels as (N,) int64. Raises DataError, with `name` in it, unless they are (N,) or (N, 1) integers from 0 on."""
    if found.shape[1:] == (1,):
        found = found[:, 0]
    if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer):
        raise DataError(
            f"{name} must hold one integer per image, from 0 to the number of classes less one; "
            f"found {found.dtype} of shape {found.shape}."
        )
    if len(found) and int(found.min()) < 0:
        raise DataError(f"{name} must hold labels from 0 on; found {int(found.min())}.")
    return torch.from_numpy(found.astype(np.int64))


def fifth(count: int) -> tuple[Tensor, Tensor]:
    """Training and test indices of a source that has no test set: always the same fifth is for the test."""
    order = torch.randperm(count, generator=seeding.generator(0))
    return order[torch.arange(count) % 5 != 0], order[::5]
