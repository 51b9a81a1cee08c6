"""Sources of data sets by name."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from functools import partial
from importlib import resources
from pathlib import Path

import numpy as np
import torch

from biotorch._names import unknown
from biotorch.data import arrays, folders, npz, tables, text
from biotorch.data.images import Normalisation
from biotorch.data.npz import Arrays
from biotorch.data.splits import Images, Kind, Pool, fifth, in_memory
from biotorch.data.tables import Table
from biotorch.data.text import Text

#: What a reader returns: all examples of a data set, as its files have them.
Whole = Pool | Text | Table | Arrays


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set, or a kind of data sets, with its reader and its defaults."""

    #: Reader, called with the name (the part after the prefix), the folder of all data and the target size of images.
    read: Callable[[str, Path, int | None], Whole]
    #: Function that lists the files and folders whose size or time changes when the data set does.
    watched: Callable[[str, Path], list[Path]] = lambda name, folder: []
    #: Whether images are read from files when they are needed, instead of all into memory.
    in_files: bool = False
    #: What the examples may be; which of several it is, only the file shows.
    kinds: frozenset[Kind] = frozenset({"images"})
    #: Default column to predict.
    target: str | None = None
    #: Whether training images are augmented by default.
    augmented: bool = False
    #: Default number of training examples held out for validation; None: a tenth.
    validation_size: int | None = None


def find(dataset: str) -> tuple[Source, str]:
    """Find the source of `data.dataset`, and the name or path for its reader. Raises ValueError if there is none."""
    prefix, _, rest = dataset.partition(":")
    if rest and prefix in _PREFIXES:
        return _PREFIXES[prefix], rest
    if dataset.endswith(".npz"):
        return _NPZ, dataset
    if dataset in _NAMED:
        return _NAMED[dataset], dataset
    paths = [*(f"{prefix}:{'<name>' if prefix == 'hf' else '<path>'}" for prefix in _PREFIXES), "<path>.npz"]
    raise unknown("data set", dataset, [*_NAMED, *paths])


def available() -> list[str]:
    """Names of all data sets. A configuration can also give a path, see `DataConfig.dataset`."""
    return list(_NAMED)


def read(dataset: str, folder: Path, target_size: int | None) -> Whole:
    """Read a whole data set. The last one is kept in memory and reused if its files have not changed."""
    source, name = find(dataset)
    folder = folder.absolute()
    stamps = ((path, path.stat()) for path in source.watched(name, folder))
    version = tuple((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stamps)
    return _read(source, name, folder, None if source.in_files else target_size, version)


@functools.lru_cache(maxsize=1)
def _read(
    source: Source, name: str, folder: Path, target_size: int | None, version: tuple[tuple[str, int, int], ...]
) -> Whole:
    return source.read(name, folder, target_size)


def _digits(name: str, folder: Path, target_size: int | None) -> Pool:
    """Read the 1,797 embedded digits of 8x8 pixels (UCI, Alpaydin & Kaynak 1998); a fifth is for the test."""
    with resources.as_file(resources.files("biotorch.data") / "digits.npz") as path, np.load(path) as archive:
        pixels = torch.from_numpy(archive["images"].astype(np.float32) * (255 / 16)).round().to(torch.uint8)
        digits = Images(pixels.unsqueeze(-1), torch.from_numpy(archive["labels"].astype(np.int64)))
    train, test = (digits[index] for index in fifth(len(digits.labels)))
    return in_memory(train, test, target_size, name, Normalisation((0.305,), (0.376,)))


def _mnist(kind: str, mean: float, std: float) -> Source:
    read = partial(arrays.read_mnist, kind=kind, normalisation=Normalisation((mean,), (std,)))
    return Source(read, partial(arrays.watched_mnist, kind=kind), validation_size=5000)


def _cifar(kind: str, mean: tuple[float, ...], std: tuple[float, ...], augmented: bool = False) -> Source:
    read = partial(arrays.read_cifar, kind=kind, normalisation=Normalisation(mean, std))
    return Source(read, partial(arrays.watched_cifar, kind=kind), augmented=augmented, validation_size=5000)


def _embedded(target: str, validation_size: int) -> Source:
    """One of the tables beside this file, see README.md there."""

    def read(name: str, folder: Path, target_size: int | None) -> Table:
        with resources.as_file(resources.files("biotorch.data") / f"{name}.csv.gz") as path:
            return dataclasses.replace(tables.read_file(path), name=name)

    return Source(read, kinds=frozenset({"table"}), target=target, validation_size=validation_size)


_CIFAR10 = _cifar("CIFAR10", (0.4914, 0.4821, 0.4465), (0.2470, 0.2435, 0.2616))

_NAMED: dict[str, Source] = {
    "mnist": _mnist("MNIST", 0.1307, 0.3081),
    "fashion_mnist": _mnist("FashionMNIST", 0.2860, 0.3530),
    "cifar10": _CIFAR10,
    # The same images, augmented as in the paper's benchmark.
    "cifar10_benchmark": dataclasses.replace(_CIFAR10, augmented=True),
    "cifar100": _cifar("CIFAR100", (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "imagenet": Source(
        folders.read_imagenet, folders.watched_imagenet, in_files=True, augmented=True, validation_size=10000
    ),
    "digits": Source(_digits, validation_size=180),
    "wine": _embedded("cultivar", validation_size=28),
    "breast_cancer": _embedded("diagnosis", validation_size=91),
    "diabetes": _embedded("progression", validation_size=71),
}

_PREFIXES: dict[str, Source] = {
    "folder": Source(folders.read_folder, folders.watched_folder, in_files=True, augmented=True),
    "parquet": Source(tables.read_parquet, tables.watched_parquet),
    "hf": Source(tables.read_hub),
    "table": Source(tables.read_table, tables.watched_table, kinds=frozenset({"table"})),
    "text": Source(text.read_text, text.watched_text, kinds=frozenset({"text"})),
}

_NPZ = Source(npz.read_npz, npz.watched_npz, kinds=frozenset({"images", "features"}))
