"""Data sets of torchvision in arrays: MNIST, Fashion-MNIST and CIFAR."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from biotorch import _files
from biotorch.data.images import Normalisation
from biotorch.data.splits import Images, Pool, in_memory, labels
from biotorch.errors import DataError, disk_is_full

_IDX = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))


def read_mnist(name: str, folder: Path, target_size: int | None, kind: str, normalisation: Normalisation) -> Pool:
    """Read the four files in `<kind>/raw`, each plain or compressed as `.gz`; download them if one is missing.

    Raises FileNotFoundError, which says which files belong where, if the download fails, and DataError if a file is
    damaged.
    """
    inner, files = f"{kind}/raw", files_of_mnist(name, folder, True, kind)
    arrays = [_idx(files[file]) for file in _IDX]
    parts = []
    for images, targets, file in zip(arrays[::2], arrays[1::2], _IDX[::2], strict=True):
        if images.ndim != 3 or targets.shape != (len(images),):
            shapes = f"{images.shape} and {targets.shape}"
            raise DataError(f"{folder / inner / file} and its labels do not fit each other: shapes {shapes}.")
        parts.append(Images(torch.from_numpy(images).unsqueeze(-1), labels(targets, inner)))
    return in_memory(parts[0], parts[1], target_size, str(folder / inner), normalisation)


def read_cifar(name: str, folder: Path, target_size: int | None, kind: str, normalisation: Normalisation) -> Pool:
    """Read the unpacked Python version of CIFAR, and download it if missing. Raises the errors of `read_mnist`."""
    from torchvision.datasets.utils import check_integrity

    source, files = _dataset(kind), files_of_cifar(name, folder, True, kind)
    damaged = [files[file] for file, md5 in _cifar_files(kind).items() if not check_integrity(files[file], md5)]
    if damaged:
        raise DataError(_damaged(damaged[0], "its checksum is wrong"))
    parts = (source(str(folder), train=part) for part in (True, False))
    train, test = (Images(torch.from_numpy(part.data), labels(np.array(part.targets), kind)) for part in parts)
    return in_memory(train, test, target_size, kind, normalisation)


def files_of_mnist(name: str, folder: Path, download: bool, kind: str) -> dict[str, Path]:
    """The four files, each plain or compressed. Raises FileNotFoundError if one is missing and not to be downloaded."""
    return _files_in(folder, kind, f"{kind}/raw", _IDX, download)


def files_of_cifar(name: str, folder: Path, download: bool, kind: str) -> dict[str, Path]:
    """The files of CIFAR. Raises FileNotFoundError if one is missing and not to be downloaded."""
    return _files_in(folder, kind, _dataset(kind).base_folder, _cifar_files(kind), download)


def _files_in(folder: Path, kind: str, inner: str, names: Iterable[str], download: bool) -> dict[str, Path]:
    files = {name: _stored(folder / inner / name) for name in names}
    missing = [path for path in files.values() if not path.is_file()]
    if not missing:
        return files
    if not download:
        raise FileNotFoundError(f"{missing[0]} is missing.")
    _download(kind, folder, inner, names)
    return {name: folder / inner / name if path in missing else path for name, path in files.items()}


def _dataset(kind: str) -> Any:
    """Data set class of torchvision with the name `kind`."""
    from torchvision import datasets

    return getattr(datasets, kind)


def _download(kind: str, folder: Path, inner: str, files: Iterable[str]) -> None:
    import http.client

    def download(partial: Path) -> None:
        # torchvision compares the checksums; reading both parts shows that they are complete.
        for train in (True, False):
            _dataset(kind)(str(partial), train=train, download=True)

    name, files = kind, list(files)
    try:
        _files.complete(folder, name, [f"{inner}/{file}" for file in files], download)
    except (OSError, RuntimeError, EOFError, zlib.error, http.client.HTTPException) as error:
        if disk_is_full(error):
            raise
        raise FileNotFoundError(
            f"{name} is not in {folder} and could not be downloaded ({error}). Put its files ({', '.join(files)}) "
            f"into {folder / inner}, or point BIOTORCH_DATA or data.dataset_path at a folder that holds {inner}."
        ) from error


def _cifar_files(kind: str) -> dict[str, str]:
    """MD5 checksums of CIFAR's files by file name."""
    source = _dataset(kind)
    return {**dict([*source.train_list, *source.test_list]), source.meta["filename"]: source.meta["md5"]}


def _stored(path: Path) -> Path:
    """Path of the file, or of its compressed form `.gz` if only that exists."""
    packed = path.with_name(f"{path.name}.gz")
    return packed if packed.is_file() and not path.is_file() else path


def _idx(path: Path) -> NDArray[np.uint8]:
    """Read the array of bytes in an IDX file: two zero bytes, a type, the number of axes, their lengths, the values."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(_damaged(path, error)) from error
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise DataError(_damaged(path, "it does not begin like an IDX file of bytes"))
    start = 4 * (1 + content[3])
    if len(content) < start:
        raise DataError(_damaged(path, "it ends within its header"))
    shape = tuple(np.frombuffer(content, ">u4", count=content[3], offset=4).tolist())
    values = np.frombuffer(content, np.uint8, offset=start)
    if len(values) != math.prod(shape):
        raise DataError(_damaged(path, f"{len(values)} values instead of the {math.prod(shape)} of {shape}"))
    return values.reshape(shape).copy()


def _damaged(path: Path, why: object) -> str:
    return f"{path} is damaged: {why}. Delete it to have it downloaded again, or replace it."
