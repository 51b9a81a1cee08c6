"""Pools of examples, which sources return, the splits made from them, batches of splits, and repeated examples."""

from __future__ import annotations

import dataclasses
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from biotorch import _seeding
from biotorch.data.images import Augmentation, Normalisation, resize
from biotorch.errors import DataError

#: Kind of the examples of a data set. `features` are float arrays that are no images.
Kind = Literal["images", "text", "table", "features"]
#: Meaning of labels: classes, or numbers.
Task = Literal["classification", "regression"]


class Split(ABC):
    """Labelled examples: with one label each, or with one for each position of a text or a sequence.

    Examples:
        >>> digits = biotorch.data.load(biotorch.data.DataConfig(dataset="digits"), seed=0)
        >>> images, labels = next(digits.test.in_order(32))
        >>> images.shape, labels.dtype
        (torch.Size([32, 1, 8, 8]), torch.int64)
    """

    #: Labels (N,) int64 from 0 on, or (N, T) with a label at each of T positions; in a regression, targets (N, k)
    #: float32, standardised on the training split.
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Shape of every example: (C, H, W) of an image, (T,) of a text, (d,) of a table, any of features."""

    @property
    def per_token(self) -> bool:
        """Whether an example has a label at each of its positions."""
        return self.labels.dim() > 1 and not self.labels.is_floating_point()

    @property
    def skipped(self) -> list[str]:
        """Sorted paths of the unreadable images that all batches of this split have left out so far."""
        return []

    @abstractmethod
    def to(self, device: torch.device) -> Split:
        """The same split with its batches on `device`."""

    @abstractmethod
    def batches(self, parts: Iterable[Tensor], augmentation: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """One batch for each of `parts`, which are index tensors (n,) int64 on the CPU, in their order.

        A batch is inputs and the labels of these examples, on the device of the split. Inputs are normalised float32
        images (n, C, H, W) in channels_last memory format, characters (n, T) int64, or float32 features (n, ...). If
        images that cannot be read are left out, a batch is smaller, or even empty.

        Args:
            parts: indices of the examples of each batch.
            augmentation: seed of the split's augmentation, if it has one; None: no augmentation. The augmentation of
                example i depends only on (seed, i), not on the batch size, the workers or the number of processes.

        Raises:
            DataError: an image file cannot be read.
        """

    def in_order(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All examples in order and without augmentation, in batches of `size`."""
        return self.batches(torch.split(torch.arange(len(self)), size))


_NONE = Augmentation(crop=0, flip=False)
#: Up to this number there may be more classes than examples, as in a small part of a data set.
_CLASSES = 1000
#: Number of classes without examples that the warning lists.
_LISTED = 5
#: Examples that are compared to the bit at once, which bounds the memory for it.
_ROWS = 256


@dataclasses.dataclass(frozen=True, eq=False)
class MemorySplit(Split):
    """Images in one uint8 tensor on the device of the training."""

    #: Images (N, H, W, C) with the border of the augmentation, which is so added only once.
    padded: Tensor
    labels: Tensor
    normalisation: Normalisation
    augmentation: Augmentation

    @classmethod
    def of(
        cls, images: Tensor, labels: Tensor, normalisation: Normalisation, augmentation: Augmentation | None = None
    ) -> MemorySplit:
        """Make a split of images (N, H, W, C) uint8 and labels (N,) int64."""
        augmentation = augmentation or _NONE
        return cls(augmentation.padded(images), labels, normalisation, augmentation)

    @property
    def images(self) -> Tensor:
        """Images (N, H, W, C) uint8 without border."""
        return self.augmentation.centre(self.padded)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        height, width, channels = self.images.shape[1:]
        return channels, height, width

    def to(self, device: torch.device) -> MemorySplit:
        return dataclasses.replace(self, padded=self.padded.to(device), labels=self.labels.to(device))

    def batches(self, parts: Iterable[Tensor], augmentation: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        pixels: Callable[[Tensor], Tensor] = self._plain
        if augmentation is not None and self.augmentation != _NONE:
            pixels = self.augmentation.view(self.padded, augmentation)
        for part in parts:
            index = part.to(self.labels.device)
            yield self.normalisation(pixels(index)), self.labels[index]

    def _plain(self, index: Tensor) -> Tensor:
        return self.augmentation.centre(self.padded.index_select(0, index))


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """Images (N, H, W, C) uint8 and labels (N,) int64, or targets (N, k) float64 of a regression, on the CPU."""

    pixels: Tensor
    labels: Tensor

    def __getitem__(self, index: Tensor) -> Images:
        return Images(self.pixels[index], self.labels[index])


@dataclasses.dataclass(frozen=True, eq=False)
class Paths:
    """Paths (N,) of image files, relative to `root`, their identities (N, 4), and labels (N,) int64."""

    root: Path
    #: One array of bytes, which worker processes share. Each of them would soon hold a copy of a list of strings.
    paths: NDArray[np.bytes_]
    #: `digests.identity` of each file when it was listed.
    identities: NDArray[np.int64]
    labels: Tensor

    def __getitem__(self, index: Tensor) -> Paths:
        chosen = index.numpy()
        return Paths(self.root, self.paths[chosen], self.identities[chosen], self.labels[index])

    def full(self, index: int) -> str:
        """Full path of one file."""
        return os.path.join(self.root, os.fsdecode(self.paths[index]))


@dataclasses.dataclass(frozen=True, eq=False)
class Pool:
    """All images of a source. They are kept for the next experiment on the same data, so they must not be changed."""

    train: Images | Paths
    test: Images | Paths
    num_outputs: int
    normalisation: Normalisation
    kind: ClassVar[Kind] = "images"


def in_memory(
    train: Images, test: Images, target_size: int | None, name: str, normalisation: Normalisation | None = None
) -> Pool:
    """Make a pool of resized images; if `normalisation` is None, it is measured on the training images.

    Raises DataError, which contains `name`, if the images of the two parts differ in shape, a part has none, or labels
    are no class numbers.
    """
    for part, images in (("training", train), ("test", test)):
        if not len(images.labels):
            raise DataError(f"{name} has no {part} images.")
    train, test = (Images(resize(part.pixels, target_size), part.labels) for part in (train, test))
    shapes = [tuple(part.pixels.shape[1:]) for part in (train, test)]
    if shapes[0] != shapes[1]:
        raise DataError(
            f"{name}: training images are {shapes[0]} (height, width, channels), but test images are {shapes[1]}. "
            "Set data.target_size if only height and width differ."
        )
    return Pool(
        train, test, outputs(train.labels, test.labels, name), normalisation or Normalisation.measured(train.pixels)
    )


def outputs(train: Tensor, test: Tensor, name: str) -> int:
    """Number of targets (N, k) of a regression, or number of classes, see `classes`."""
    return train.shape[1] if train.is_floating_point() else classes(train, test, name)


def classes(train: Tensor, test: Tensor, name: str) -> int:
    """Number of classes: one more than the greatest label of both parts.

    Raises DataError, with `name`, if so few of many classes have examples that labels cannot be class numbers.

    Warns:
        UserWarning: classes have no example.
    """
    found = np.unique(torch.cat([train, test]).numpy())
    count, known, examples = int(found[-1]) + 1, len(found), len(train) + len(test)
    if count > max(_CLASSES, examples):
        raise DataError(
            f"{name} has the label {count - 1}, which would make {count:,} classes of {examples:,} examples, "
            f"{count - known:,} of them empty. Correct the label, or number the {known:,} classes from 0 on."
        )
    if known < count:
        absent = np.setdiff1d(np.arange(count), found).tolist()
        listed = f"{', '.join(map(str, absent[:_LISTED]))}{' ...' if absent[_LISTED:] else ''}"
        warnings.warn(f"{name}: {len(absent)} of {count} classes have no example ({listed})", stacklevel=2)
    return count


def labels(found: NDArray[np.generic], name: str) -> Tensor:
    """Convert labels (N,) or (N, 1) to (N,) int64. Raises DataError, with `name`, unless they are integers >= 0."""
    if found.shape[1:] == (1,):
        found = found[:, 0]
    if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer):
        raise DataError(
            f"{name} must hold one integer per image, from 0 to the number of classes minus one; "
            f"found {found.dtype} of shape {found.shape}."
        )
    for value in (int(found.min()), int(found.max())) if len(found) else ():
        if not 0 <= value < 2**63:
            raise DataError(f"{name} must hold labels from 0 on; found {value}.")
    return torch.from_numpy(found.astype(np.int64))


def fifth(count: int) -> tuple[Tensor, Tensor]:
    """Indices for training and test of a source without a test set; the same fifth is always for the test."""
    order = torch.randperm(count, generator=_seeding.generator(0))
    return order[torch.arange(count) % 5 != 0], order[::5]


# Repeated examples ---------------------------------------------------------------------------------


class Repeated(NamedTuple):
    """Test examples that are training examples, too: their number, and the names of one pair."""

    number: int
    test: str
    train: str


def repeated_rows(train: Sequence[Tensor], test: Sequence[Tensor]) -> Repeated | None:
    """Find the examples that are in both parts with equal bits, or None.

    Args:
        train: tensors (N, ...) which together hold the examples, such as inputs and targets.
        test: the same of the other part.
    """
    known, order = _keys(train).sort()
    wanted = _keys(test)
    place = torch.searchsorted(known, wanted).clamp(max=len(known) - 1)
    hits = (known[place] == wanted).nonzero()[:, 0]
    equal = [(_bytes(train, order[place[part]]) == _bytes(test, part)).all(1) for part in torch.split(hits, _ROWS)]
    hits = hits[torch.cat(equal)]  # rows that differ may share a key
    if not len(hits):
        return None
    first = int(hits[0])
    return Repeated(len(hits), f"example {first}", f"example {int(order[place[first]])}")


def _bytes(parts: Sequence[Tensor], index: Tensor) -> Tensor:
    """All bytes (n, bytes) of some examples, with zeros up to a multiple of eight."""
    chosen = (part[index].flatten(1) if part.dim() > 1 else part[index, None] for part in parts)
    rows = torch.cat([each.contiguous().view(torch.uint8) for each in chosen], dim=1)
    return F.pad(rows, (0, -rows.shape[1] % 8))


def _keys(parts: Sequence[Tensor]) -> Tensor:
    """Keys (N,) int64 of examples: sums of all their bytes, eight at a time, with random factors."""
    found = []
    for index in torch.split(torch.arange(len(parts[0])), _ROWS):
        rows = _bytes(parts, index).view(torch.int64)
        factors = torch.randint(-(2**62), 2**62, (rows.shape[1],), generator=_seeding.generator(0))
        found.append(rows @ (2 * factors + 1))
    return torch.cat(found)
