"""Sets in one .npz file."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from biotorch.data.errors import DataError
from biotorch.data.folders import locate
from biotorch.data.pools import Images, Pool, in_memory, labels

_NAMES = ("x_train", "y_train", "x_test", "y_test")
_IMAGES = "uint8 images (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels"


def read_npz(path: str, folder: Path, target_size: int | None) -> Pool:
    """Arrays `x_train`, `y_train`, `x_test`, `y_test`; raises DataError that says which of them is not as needed."""
    file = locate(path, folder)
    x_train, y_train, x_test, y_test = _arrays(file)
    train, test = _part(x_train, y_train, "train", file), _part(x_test, y_test, "test", file)
    return in_memory(train, test, target_size, str(file))


def watched_npz(path: str, folder: Path) -> list[Path]:
    """The file."""
    return [locate(path, folder)]


def _arrays(file: Path) -> list[NDArray[np.generic]]:
    if not zipfile.is_zipfile(file):
        raise DataError(f"{file} is not a whole .npz file, as numpy.savez(file, x_train=..., ...) writes it.")
    try:
        with np.load(file, allow_pickle=False) as stored:
            found = stored.files
            arrays = {name: stored[name] for name in _NAMES if name in found}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    if missing := [name for name in _NAMES if name not in arrays]:
        raise DataError(f"{file} lacks {', '.join(missing)}; needed: {', '.join(_NAMES)}; found: {', '.join(found)}.")
    return [arrays[name] for name in _NAMES]


def _part(images: NDArray[np.generic], targets: NDArray[np.generic], part: str, file: Path) -> Images:
    pixels = _pixels(images, f"x_{part} in {file}")
    target = labels(targets, f"y_{part} in {file}")
    if len(pixels) != len(target):
        raise DataError(f"{file}: x_{part} has {len(pixels)} images, but y_{part} has {len(target)} labels.")
    return Images(pixels, target)


def _pixels(found: NDArray[np.generic], name: str) -> Tensor:
    """Images in any of the layouts as (N, H, W, C)."""
    if found.dtype != np.uint8:
        cure = " Multiply pixels in [0, 1] by 255 and cast them to uint8." if found.dtype.kind == "f" else ""
        raise DataError(f"{name} must be {_IMAGES}; found {found.dtype} of shape {found.shape}.{cure}")
    images = torch.from_numpy(found)
    if images.dim() == 3:
        return images.unsqueeze(-1)
    if images.dim() == 4 and images.shape[-1] in (1, 3):
        return images
    if images.dim() == 4 and images.shape[1] in (1, 3):
        return images.permute(0, 2, 3, 1).contiguous()
    raise DataError(f"{name} must be {_IMAGES}; found shape {found.shape}.")
