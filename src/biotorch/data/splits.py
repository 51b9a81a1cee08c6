"""A part of a data set, and batches of it; here for images held in memory."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from biotorch.data.augmentation import Augmentation
from biotorch.data.images import Normalisation


class Split(ABC):
    """Labelled examples: images with one label each, or texts with one for each of their characters."""

    #: (N,) int64 from 0 on, or (N, T) with a label at each of T positions.
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """That of every example: (C, H, W) of an image, (T,) of a text."""

    @property
    def per_token(self) -> bool:
        """Whether an example has a label at each of its positions."""
        return self.labels.dim() > 1

    @property
    def skipped(self) -> list[str]:
        """Paths of the unreadable images left out so far, sorted; of all batches that were drawn from this split."""
        return []

    @abstractmethod
    def to(self, device: torch.device) -> Split:
        """The same split with its batches on `device`."""

    @abstractmethod
    def batches(self, parts: Iterable[Tensor], augmentation: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """One batch for each of `parts`, index tensors (n,) int64 on the CPU, in their order.

        A batch is normalised float32 images (n, C, H, W) in channels_last memory format and labels
        (n,) int64, or characters (n, T) and labels (n, T), both int64; on the device of the split.
        `augmentation` seeds the split's augmentation, if it has one: what becomes of example i follows
        from (seed, i) alone, so neither batch size nor workers nor the processes of a distributed run
        change it. None: the images as they are.
        Images that are left out because they cannot be read may leave a batch smaller, or empty.
        Raises DataError at an image file that cannot be read.
        """

    def in_order(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All examples as they are, in order, in batches of `size`."""
        return self.batches(torch.split(torch.arange(len(self)), size))


_NONE = Augmentation(crop=0, flip=False)


@dataclasses.dataclass(frozen=True, eq=False)
class MemorySplit(Split):
    """Images as one uint8 tensor on the device that trains."""

    #: (N, H, W, C), with the border that the augmentation cuts from, so that it is added only once.
    padded: Tensor
    labels: Tensor
    normalisation: Normalisation
    augmentation: Augmentation

    @classmethod
    def of(
        cls, images: Tensor, labels: Tensor, normalisation: Normalisation, augmentation: Augmentation | None = None
    ) -> MemorySplit:
        """Images (N, H, W, C) uint8 and labels (N,) int64."""
        augmentation = augmentation or _NONE
        return cls(augmentation.padded(images), labels, normalisation, augmentation)

    @property
    def images(self) -> Tensor:
        """(N, H, W, C) uint8."""
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
