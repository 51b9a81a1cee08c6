"""Class folders of image files, such as ImageNet's."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from biotorch.data.images import Normalisation
from biotorch.data.splits import Paths, Pool, fifth
from biotorch.errors import DataError

IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
#: Largest number of classes that the message lists for each part if the parts have different ones.
_LISTED = 5


def locate(path: str, folder: Path, key: str = "data.dataset") -> Path:
    """Find a path that a user wrote at `key`, first in the working folder, then in `folder`; `~` is the home.

    Raises FileNotFoundError that names both places.
    """
    given = Path(path).expanduser()
    places = list(dict.fromkeys(place.absolute() for place in (given, folder / given)))
    for place in places:
        if place.exists():
            return place
    raise FileNotFoundError(
        f"{path!r} of {key} was not found; these paths do not exist: {', '.join(map(str, places))}. "
        "Correct the path, or set BIOTORCH_DATA or data.dataset_path to the folder that it is in."
    )


def read_folder(path: str, folder: Path, target_size: int | None) -> Pool:
    """List the images in `train/<class>/*` and `test/<class>/*` (or `val/<class>/*`), or those in `<class>/*`.

    If there is no `train/`, a fifth of the images is for the test. Raises DataError if classes or images are missing.
    """
    root = locate(path, folder)
    if not _is_split(root):
        names = _classes(root)
        everything = _list(root, names)
        train, test = (everything[index] for index in fifth(len(everything.labels)))
        return Pool(train, test, len(names), IMAGENET)
    for part in ("test", "val"):
        if (root / part).is_dir():
            return _read(root / "train", root / part)
    raise DataError(f"{root} has train/, but neither test/ nor val/ for the test set.")


def read_imagenet(name: str, folder: Path, target_size: int | None) -> Pool:
    """List the images in ImageNet's `train/` and `val/`. `val/` is the test set: the real one has no public labels.

    Raises FileNotFoundError, which says which folder belongs where, and DataError if classes or images are missing.
    """
    root = _imagenet(folder)
    for part in ("train", "val"):
        if not (root / part).is_dir():
            raise FileNotFoundError(
                f"imagenet is not in {root}: {part}/ is missing. ImageNet cannot be downloaded without an account at "
                f"image-net.org: unpack it into {root / 'train'}/<class>/ and {root / 'val'}/<class>/, or "
                "set data.dataset_path to the folder that holds train/ and val/."
            )
    return _read(root / "train", root / "val")


def watched_folder(path: str, folder: Path) -> list[Path]:
    """All class folders, whose modification times change when a file is added or removed."""
    root = locate(path, folder)
    parts = [root / part for part in ("train", "test", "val") if (root / part).is_dir()] if _is_split(root) else [root]
    return [part / name for part in parts for name in _folders(part)]


def watched_imagenet(name: str, folder: Path) -> list[Path]:
    """The class folders of `train/` and `val/`."""
    parts = (_imagenet(folder) / part for part in ("train", "val"))
    return [part / name for part in parts if part.is_dir() for name in _folders(part)]


def _imagenet(folder: Path) -> Path:
    return folder / "imagenet" if (folder / "imagenet").is_dir() or not (folder / "train").is_dir() else folder


def _is_split(root: Path) -> bool:
    """Whether `train/` holds class folders; if it holds images, it is a class called train."""
    return (root / "train").is_dir() and bool(_folders(root / "train"))


def _folders(root: Path) -> list[str]:
    if not root.is_dir():
        raise DataError(f"{root} is not a folder.")
    return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))


def _classes(root: Path) -> list[str]:
    names = _folders(root)
    if not names:
        raise DataError(
            f"{root} has no class folders: it needs a folder for each class, with the images of the class in it."
        )
    return names


def _read(train: Path, test: Path) -> Pool:
    names, others = _classes(train), _classes(test)
    if names != others:
        lacking = [
            f"{sorted(some)[:_LISTED]}{' ...' if len(some) > _LISTED else ''} only in {place}"
            for some, place in ((set(names) - set(others), train), (set(others) - set(names), test))
            if some
        ]
        raise DataError(f"the classes of {train} and {test} differ: {'; '.join(lacking)}.")
    return Pool(_list(train, names), _list(test, names), len(names), IMAGENET)


def _list(root: Path, names: list[str]) -> Paths:
    from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension, make_dataset

    def is_image(path: str) -> bool:
        return not os.path.basename(path).startswith(".") and has_file_allowed_extension(path, IMG_EXTENSIONS)

    found = make_dataset(
        str(root), {name: label for label, name in enumerate(names)}, is_valid_file=is_image, allow_empty=True
    )
    labels = torch.tensor([label for _, label in found], dtype=torch.int64)
    empty = [
        name for name, count in zip(names, labels.bincount(minlength=len(names)).tolist(), strict=True) if not count
    ]
    if empty:
        raise DataError(
            f"{root / empty[0]} holds no images{f', as {len(empty) - 1} other class folders' if empty[1:] else ''}. "
            f"Remove the folder, or put images into it ({', '.join(IMG_EXTENSIONS)})."
        )
    start = len(os.fsencode(root)) + 1
    return Paths(root, np.array([os.fsencode(path)[start:] for path, _ in found]), labels)
