"""Image classification sets by name, held in memory as one uint8 tensor per split."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torchvision
from pydantic import field_validator
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from biotorch import seeding
from biotorch.frozen import Section
from biotorch.names import unknown


class DataConfig(Section):
    """The `data` section of a configuration."""

    dataset: str
    #: Folder of the data; default: the environment variable BIOTORCH_DATA, else `~/.cache/biotorch`.
    dataset_path: Path | None = None
    #: Side length in pixels that images are resized to.
    target_size: int | None = None
    #: `split`: hold out part of the training set. `test`: the test set itself, as the paper has it for
    #: MNIST and Fashion-MNIST; the best epoch is then chosen on the test set, which flatters every figure.
    validation: Literal["split", "test"] = "split"
    #: Loader processes, of the paper's files; without effect: all sets are held in memory so far.
    num_workers: int = 0

    @field_validator("dataset")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in _SOURCES:
            raise unknown("data set", name, available())
        return name

    @property
    def folder(self) -> Path:
        """Where the files are, or are downloaded to."""
        if self.dataset_path is not None:
            return self.dataset_path
        return Path(os.environ.get("BIOTORCH_DATA") or Path.home() / ".cache" / "biotorch")


@dataclasses.dataclass(frozen=True)
class Split:
    """Images (N, C, H, W) uint8 and labels (N,) int64, with the normalisation (per channel) of the set."""

    images: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Split:
        """The same split on `device`."""
        return Split(*(getattr(self, field.name).to(device) for field in dataclasses.fields(self)))

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised float images and labels, in order, or shuffled by a (CPU) generator if one is given."""
        order = torch.arange(len(self)) if generator is None else torch.randperm(len(self), generator=generator)
        scale, shift = 1 / (255 * self.std), self.mean / self.std
        for index in torch.split(order.to(self.labels.device), size):
            yield self.images[index] * scale[:, None, None] - shift[:, None, None], self.labels[index]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A set in three parts; nothing of `validation` or `test` is in `train`."""

    train: Split
    validation: Split
    test: Split
    num_classes: int

    def to(self, device: torch.device) -> Dataset:
        """The same set on `device`."""
        return Dataset(self.train.to(device), self.validation.to(device), self.test.to(device), self.num_classes)


#: Images (N, H, W) or (N, C, H, W) uint8 and labels of the training and of the test set.
_Arrays = tuple[Tensor, Tensor, Tensor, Tensor]


def _digits(folder: Path) -> _Arrays:
    """1,797 digits of 8x8 pixels (UCI, Alpaydin & Kaynak 1998), embedded; every fifth is for the test."""
    with resources.as_file(resources.files("biotorch.data") / "digits.npz") as path, np.load(path) as arrays:
        images = torch.from_numpy(arrays["images"].astype(np.float32) * (255 / 16)).round().to(torch.uint8)
        labels = torch.from_numpy(arrays["labels"].astype(np.int64))
    order = torch.randperm(len(labels), generator=seeding.generator(0))
    test, train = order[::5], order[torch.arange(len(order)) % 5 != 0]
    return images[train], labels[train], images[test], labels[test]


def _torchvision(kind: type[torchvision.datasets.MNIST]) -> Callable[[Path], _Arrays]:
    def read(folder: Path) -> _Arrays:
        try:
            train, test = (kind(str(folder), train=part, download=True) for part in (True, False))
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"{kind.__name__} is not in {folder} and could not be downloaded ({error}). Put its four "
                f"files into {folder / kind.__name__ / 'raw'}, or point BIOTORCH_DATA or data.dataset_path "
                f"at a folder that holds {kind.__name__}/raw."
            ) from error
        return train.data, train.targets, test.data, test.targets

    return read


@dataclasses.dataclass(frozen=True)
class _Source:
    read: Callable[[Path], _Arrays]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    #: Examples of the training set that are held out.
    validation: int


_SOURCES: dict[str, _Source] = {
    "digits": _Source(_digits, (0.305,), (0.376,), 180),
    "fashion_mnist": _Source(_torchvision(torchvision.datasets.FashionMNIST), (0.2860,), (0.3530,), 5000),
    "mnist": _Source(_torchvision(torchvision.datasets.MNIST), (0.1307,), (0.3081,), 5000),
}


def available() -> list[str]:
    """The names of all data sets."""
    return list(_SOURCES)


def load(config: DataConfig, seed: int) -> Dataset:
    """The data set of a configuration; which training images are held out is decided by `seed` alone.

    Raises FileNotFoundError, saying which file belongs where, if it is missing and cannot be downloaded.
    """
    source = _SOURCES[config.dataset]
    train_images, train_labels, test_images, test_labels = source.read(config.folder)
    mean, std = torch.tensor(source.mean), torch.tensor(source.std)

    def split(images: Tensor, labels: Tensor) -> Split:
        images = images.unsqueeze(1) if images.dim() == 3 else images
        if config.target_size is not None and images.shape[-1] != config.target_size:
            images = transforms.resize(images, [config.target_size] * 2, antialias=True)
        return Split(images.contiguous(), labels.long(), mean, std)

    num_classes = int(train_labels.max()) + 1
    test = split(test_images, test_labels)
    if config.validation == "test":
        return Dataset(split(train_images, train_labels), validation=test, test=test, num_classes=num_classes)
    order = torch.randperm(len(train_labels), generator=seeding.generator(seeding.derive(seed, "validation split")))
    held_out, kept = order[: source.validation], order[source.validation :]
    return Dataset(
        train=split(train_images[kept], train_labels[kept]),
        validation=split(train_images[held_out], train_labels[held_out]),
        test=test,
        num_classes=num_classes,
    )
