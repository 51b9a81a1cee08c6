"""Sources of data sets by name."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from functools import partial
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from biotorch._names import unknown
from biotorch.data import arrays, digests, folders, npz, tables, text
from biotorch.data.images import Normalisation
from biotorch.data.npz import Arrays
from biotorch.data.splits import Images, Kind, Paths, Pool, Repeated, fifth, in_memory, repeated_rows
from biotorch.data.tables import Table
from biotorch.data.text import Text

#: Result of a reader: all examples of a data set, as its files have them.
Whole = Pool | Text | Table | Arrays


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set, or a kind of data sets, with its reader and its defaults."""

    #: Reader, called with the name (the part after the prefix), the folder of all data and the target size of images.
    read: Callable[[str, Path, int | None], Whole]
    #: Function from the same name and folder, and whether to download what is missing, to the files of the data set by
    #: their names in it; or to its folders, if images are read when they are needed. Raises FileNotFoundError.
    files: Callable[[str, Path, bool], dict[str, Path]]
    #: Whether images are read from files when they are needed, instead of all into memory.
    in_files: bool = False
    #: Possible kinds of the examples; which of several it is, only the file shows.
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
    """Names of all data sets. A configuration can also give a path, see `DataConfig.dataset`.

    Examples:
        >>> biotorch.data.available()[:4]
        ['mnist', 'fashion_mnist', 'cifar10', 'cifar10_benchmark']
    """
    return list(_NAMED)


class Found(NamedTuple):
    """A data set, the description of its files (see `digests`), and test images that are training images."""

    pool: Whole
    files: digests.Files
    repeated: Repeated | None = None


def read(dataset: str, folder: Path, target_size: int | None, contents: bool = False) -> Found:
    """Read a whole data set. The last one is kept in memory and reused if its files have not changed.

    Image files are only listed; with `contents` they are all read, too, and described by their contents.
    """
    source, name = find(dataset)
    if source.in_files:
        pool = source.read(name, folder.absolute(), None)
        assert isinstance(pool, Pool) and isinstance(pool.train, Paths) and isinstance(pool.test, Paths)  # noqa: PT018
        return Found(pool, *digests.of_folders(pool.train, pool.test, contents))
    stamps = digests.stamps(source.files(name, folder.absolute(), True))
    return _read(source, name, folder.absolute(), target_size, stamps)


@functools.lru_cache(maxsize=1)
def _read(source: Source, name: str, folder: Path, target_size: int | None, stamps: tuple[digests.Stamp, ...]) -> Found:
    pool, repeated = source.read(name, folder, target_size), None
    if isinstance(pool, Pool) and isinstance(pool.train, Images) and isinstance(pool.test, Images):
        repeated = repeated_rows([pool.train.pixels], [pool.test.pixels])
    found = Found(pool, digests.of_files(stamps), repeated)
    digests.require_unchanged(stamps)
    return found


def describe(dataset: str, folder: Path, contents: bool = False) -> digests.Files:
    """Describe the files of a data set as `read` does, without reading images from them, and without a download.

    Raises FileNotFoundError if the data set is not in the folder.
    """
    source, name = find(dataset)
    files = source.files(name, folder.absolute(), False)
    if source.in_files:
        return read(dataset, folder, None, contents).files
    return digests.of_files(digests.stamps(files))


def require_present(dataset: str, folder: Path) -> None:
    """Download the files of a data set if needed. Raises FileNotFoundError if they are not there afterwards."""
    source, name = find(dataset)
    source.files(name, folder.absolute(), True)


def _one_file(path: str, folder: Path, download: bool) -> dict[str, Path]:
    file = folders.locate(path, folder)
    return {file.name: file}


def _beside(file: str) -> Callable[[str, Path, bool], dict[str, Path]]:
    """`Source.files` of a file of this package."""

    def files(name: str, folder: Path, download: bool) -> dict[str, Path]:
        with resources.as_file(resources.files("biotorch.data") / file) as path:
            return {file: path}

    return files


def _digits(name: str, folder: Path, target_size: int | None) -> Pool:
    """Read the 1,797 embedded digits of 8x8 pixels (UCI, Alpaydin & Kaynak 1998); a fifth is for the test."""
    with resources.as_file(resources.files("biotorch.data") / "digits.npz") as path, np.load(path) as archive:
        pixels = torch.from_numpy(archive["images"].astype(np.float32) * (255 / 16)).round().to(torch.uint8)
        digits = Images(pixels.unsqueeze(-1), torch.from_numpy(archive["labels"].astype(np.int64)))
    train, test = (digits[index] for index in fifth(len(digits.labels)))
    return in_memory(train, test, target_size, name, Normalisation((0.305,), (0.376,)))


def _mnist(kind: str, mean: float, std: float) -> Source:
    read = partial(arrays.read_mnist, kind=kind, normalisation=Normalisation((mean,), (std,)))
    return Source(read, partial(arrays.files_of_mnist, kind=kind), validation_size=5000)


def _cifar(kind: str, mean: tuple[float, ...], std: tuple[float, ...], augmented: bool = False) -> Source:
    read = partial(arrays.read_cifar, kind=kind, normalisation=Normalisation(mean, std))
    return Source(read, partial(arrays.files_of_cifar, kind=kind), augmented=augmented, validation_size=5000)


def _embedded(name: str, target: str, validation_size: int) -> Source:
    """One of the tables beside this file, see README.md there."""
    files = _beside(f"{name}.csv.gz")

    def read(name: str, folder: Path, target_size: int | None) -> Table:
        (path,) = files(name, folder, False).values()
        return dataclasses.replace(tables.read_file(path), name=name)

    return Source(read, files, kinds=frozenset({"table"}), target=target, validation_size=validation_size)


_CIFAR10 = _cifar("CIFAR10", (0.4914, 0.4821, 0.4465), (0.2470, 0.2435, 0.2616))

_NAMED: dict[str, Source] = {
    "mnist": _mnist("MNIST", 0.1307, 0.3081),
    "fashion_mnist": _mnist("FashionMNIST", 0.2860, 0.3530),
    "cifar10": _CIFAR10,
    # The same images, augmented as in the paper's benchmark.
    "cifar10_benchmark": dataclasses.replace(_CIFAR10, augmented=True),
    "cifar100": _cifar("CIFAR100", (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "imagenet": Source(
        folders.read_imagenet, folders.files_of_imagenet, in_files=True, augmented=True, validation_size=10000
    ),
    "digits": Source(_digits, _beside("digits.npz"), validation_size=180),
    "wine": _embedded("wine", "cultivar", validation_size=28),
    "breast_cancer": _embedded("breast_cancer", "diagnosis", validation_size=91),
    "diabetes": _embedded("diabetes", "progression", validation_size=71),
}

_PREFIXES: dict[str, Source] = {
    "folder": Source(folders.read_folder, folders.files_of_folder, in_files=True, augmented=True),
    "parquet": Source(tables.read_parquet, tables.files_of_parquet),
    "hf": Source(tables.read_hub, tables.files_of_hub),
    "table": Source(tables.read_table, _one_file, kinds=frozenset({"table"})),
    "text": Source(text.read_text, _one_file, kinds=frozenset({"text"})),
}

_NPZ = Source(npz.read_npz, _one_file, kinds=frozenset({"images", "features"}))
