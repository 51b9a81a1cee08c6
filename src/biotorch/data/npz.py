"""Data sets in .npz files: images, features of any shape, and sequences."""

from __future__ import annotations

import dataclasses
import math
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from biotorch import _memory
from biotorch.data.features import Features, Rows
from biotorch.data.folders import locate
from biotorch.data.splits import Images, Kind, Pool, Task, in_memory, labels, outputs
from biotorch.errors import DataError

_NAMES = ("x_train", "y_train", "x_test", "y_test")
_IMAGES = "uint8 images (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels, or floats (N, ...)"
#: Readers of the header of an array, by the version of the format; a third one is for records alone.
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
#: Exceptions of numpy and zipfile for damaged members; headers are read as Python literals.
_DAMAGED = (
    ValueError,
    EOFError,
    OSError,
    SyntaxError,
    TypeError,
    LookupError,
    OverflowError,
    RuntimeError,
    NotImplementedError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
#: The whole arrays stay in memory beside their three splits.
_COPIES = 2

Array = NDArray[np.generic]


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
    """Float features and their targets in the order `x_train`, `y_train`, `x_test`, `y_test`."""

    file: Path
    arrays: tuple[Array, Array, Array, Array]
    kind: ClassVar[Kind] = "features"

    def features(self, task: Task | None) -> Features:
        """Features with classes, or targets of a regression: as the dtype of y says, or as `task` says.

        Raises DataError, which names the array, if features are not finite or targets do not fit them.
        """
        train, test = (
            self._rows(x, y, part, task)
            for x, y, part in zip(self.arrays[::2], self.arrays[1::2], ("train", "test"), strict=True)
        )
        if train.numbers.shape[1:] != test.numbers.shape[1:]:
            raise DataError(
                f"{self.file}: an example of x_train has shape {train.numbers.shape[1:]}, but one of x_test "
                f"{test.numbers.shape[1:]}."
            )
        _agree(train.labels, test.labels, self.file)
        return Features(self.kind, str(self.file), train, test, outputs(train.labels, test.labels, str(self.file)))

    def _rows(self, x: Array, y: Array, part: str, task: Task | None) -> Rows:
        name = f"x_{part} in {self.file}"
        numbers: NDArray[Any] = x[:, None] if x.ndim == 1 else x
        _require_equal(len(x), len(y), part, self.file, "examples")
        if not numbers.size:
            raise DataError(f"{name} has no values: found shape {x.shape}.")
        if bad := sum(not np.isfinite(row).all() for row in numbers):
            raise DataError(
                f"{name} has values that are NaN or infinite in {bad} of {len(x)} examples: replace or remove them."
            )
        steps = numbers.shape[1] if numbers.ndim > 2 else None
        empty = np.zeros((len(x), 0), np.int64)
        return Rows(numbers, empty, _targets(y, task, steps, f"y_{part} in {self.file}"))


def read_npz(path: str, folder: Path, target_size: int | None) -> Pool | Arrays:
    """Read the arrays `x_train`, `y_train`, `x_test`, `y_test`. Raises DataError that names a missing or wrong one."""
    file = locate(path, folder)
    x_train, y_train, x_test, y_test = arrays = _arrays(file)
    floats = [each.dtype.kind == "f" for each in (x_train, x_test)]
    if all(floats):
        return Arrays(file, arrays)
    if any(floats):
        raise DataError(f"{file}: x_train holds {x_train.dtype}, but x_test {x_test.dtype}. Both must be alike.")
    train, test = _images(x_train, y_train, "train", file), _images(x_test, y_test, "test", file)
    _agree(train.labels, test.labels, file)
    return in_memory(train, test, target_size, str(file))


def _arrays(file: Path) -> tuple[Array, Array, Array, Array]:
    """Read the four arrays, after it is known from their headers what they are and how much memory they take."""
    try:
        with zipfile.ZipFile(file) as archive:
            found = {name.removesuffix(".npy"): name for name in archive.namelist()}
            if missing := [name for name in _NAMES if name not in found]:
                raise DataError(
                    f"{file} lacks {', '.join(missing)}; needed: {', '.join(_NAMES)}; found: {', '.join(found)}."
                )
            needed = sum(_announced(archive, archive.getinfo(found[name]), name, file) for name in _NAMES)
            _memory.require(_COPIES * needed, str(file))
            x_train, y_train, x_test, y_test = (_array(archive, found[name], name, file) for name in _NAMES)
    except (zipfile.BadZipFile, IsADirectoryError, NotImplementedError, ValueError, struct.error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{file} is not a complete .npz file ({error}). Write it with numpy.savez(file, x_train=..., ...)."
        ) from error
    return x_train, y_train, x_test, y_test


def _announced(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, file: Path) -> int:
    """Number of bytes of an array. Raises DataError if its header and its size in the archive contradict each other."""
    try:
        with archive.open(member) as stream:
            version = np.lib.format.read_magic(stream)
            if version not in _HEADERS:
                raise DataError(f"{name} in {file} must be a plain array: found version {version} of numpy's format.")
            shape, _, dtype = _HEADERS[version](stream)
            header = stream.tell()
    except _DAMAGED as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{name} in {file} cannot be read: {error}.") from error
    if dtype.kind not in "fiub" or not shape:
        raise DataError(f"{name} in {file} must be an array (N, ...) of numbers; found {dtype} of shape {shape}.")
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or header + size != member.file_size:
        raise DataError(
            f"{name} in {file} is damaged: by its header it has the shape {shape}, which takes {size:,} bytes of "
            f"{dtype}, but the archive has {member.file_size - header:,}."
        )
    return size


def _array(archive: zipfile.ZipFile, member: str, name: str, file: Path) -> Array:
    try:
        with archive.open(member) as stream:
            found: Array = np.lib.format.read_array(stream, allow_pickle=False)
            stream.read()  # to the end, where the checksum is compared
    except _DAMAGED as error:
        raise DataError(f"{name} in {file} cannot be read: {error}") from error
    native = found.dtype.newbyteorder("=")
    return found.astype(np.float32 if native == np.float16 else native, copy=False)


def _require_equal(x: int, y: int, part: str, file: Path, what: str) -> None:
    if x != y:
        raise DataError(f"{file}: x_{part} has {x} {what}, but y_{part} has {y} labels.")


def _agree(train: Tensor, test: Tensor, file: Path) -> None:
    if (train.shape[1:], train.dtype) != (test.shape[1:], test.dtype):
        described = (f"{each.dtype} of shape {tuple(each.shape)}".replace("torch.", "") for each in (train, test))
        raise DataError(f"{file}: y_train and y_test must be of one kind; found {' and '.join(described)}.")


def _targets(found: Array, task: Task | None, steps: int | None, name: str) -> Tensor:
    """Convert targets to int64 (N,) or, for each of `steps` steps, (N, T); of a regression to float64 (N, k)."""
    task = task or ("regression" if found.dtype.kind == "f" else "classification")
    finite = np.isfinite(found)
    if not finite.all():
        raise DataError(f"{name} has {np.count_nonzero(~finite)} values that are NaN or infinite: remove the examples.")
    if task == "regression":
        if found.ndim not in (1, 2) or not found.size:
            raise DataError(f"{name} must hold one number per example, or (N, k); found shape {found.shape}.")
        return torch.from_numpy(found.astype(np.float64).reshape(len(found), -1))
    if found.dtype.kind == "f":
        whole = found.astype(np.int64)
        if (whole != found).any():
            raise DataError(f"{name} has fractions, which are no classes: remove data.task, or round them.")
        found = whole
    if steps is not None and found.ndim == 2 and found.shape[1] == steps:
        return labels(found.reshape(-1), name).view(len(found), steps)
    if found.ndim > 1 and found.shape[1:] != (1,):
        raise DataError(
            f"{name} must hold one integer per example, or one per step of x (N, T, features); found shape "
            f"{found.shape}."
        )
    return labels(found, name)


def _images(x: Array, y: Array, part: str, file: Path) -> Images:
    pixels = _pixels(x, f"x_{part} in {file}")
    target = _targets(y, None, None, f"y_{part} in {file}")
    _require_equal(len(pixels), len(target), part, file, "images")
    return Images(pixels, target)


def _pixels(found: Array, name: str) -> Tensor:
    """Convert images of any allowed layout to (N, H, W, C)."""
    if found.dtype != np.uint8:
        raise DataError(
            f"{name} must be {_IMAGES}; found {found.dtype} of shape {found.shape}. Cast features to float32, and "
            "pixels from 0 to 255 to uint8."
        )
    images = torch.from_numpy(found)
    if images.dim() == 3:
        return images.unsqueeze(-1)
    if images.dim() == 4 and images.shape[-1] in (1, 3):
        return images
    if images.dim() == 4 and images.shape[1] in (1, 3):
        return images.permute(0, 2, 3, 1).contiguous()
    raise DataError(f"{name} must be {_IMAGES}; found shape {found.shape}.")
