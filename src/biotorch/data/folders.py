"""Class folders of image files, such as ImageNet's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from biotorch.data import digests
from biotorch.data.images import Normalisation
from biotorch.data.splits import Paths, Pool, fifth
from biotorch.errors import DataError

IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
#: Most classes, or entries of a folder, that a message lists.
_LISTED = 5
#: Folders of a data set that hold its training and its test images.
_PARTS = ("train", "test", "val")
#: Trees of image files, of which the first line says more; an empty line stands between the two.
_TREES = (
    "cat/1.jpg            a folder for each class; a fifth of the images becomes the test set",
    "dog/2.jpg",
    "",
    "train/cat/1.jpg      train/ and test/ (or val/) with the same classes",
    "train/dog/2.jpg",
    "test/cat/3.jpg",
    "test/dog/4.jpg",
)


def locate(path: str, folder: Path, key: str = "data.dataset") -> Path:
    """Find a file or folder that a user wrote at `key`, first in the working folder, then in `folder`; `~` is the home.

    Raises FileNotFoundError that names both places, and DataError for a pipe or a device, whose reading may never end.
    """
    given = Path(path).expanduser()
    places = list(dict.fromkeys(place.absolute() for place in (given, folder / given)))
    for place in places:
        if place.is_file() or place.is_dir():
            return place
        if place.exists():
            raise DataError(f"{place} is neither a file nor a folder.")
    raise FileNotFoundError(
        f"{path!r} of {key} was not found; these paths do not exist: {', '.join(map(str, places))}. "
        "Correct the path, or set BIOTORCH_DATA or data.dataset_path to the folder that it is in."
    )


def read_folder(path: str, folder: Path, target_size: int | None) -> Pool:
    """List the images in `train/<class>/*` and `test/<class>/*` (or `val/<class>/*`), or those in `<class>/*`.

    If there is no `train/`, a fifth of the images is for the test. Raises DataError if classes or images are missing.
    """
    root, seen = locate(path, folder), _Seen()
    if not _is_split(root):
        names = _classes(root)
        everything = _list(root, names, seen)
        train, test = (everything[index] for index in fifth(len(everything.labels)))
        return Pool(train, test, len(names), IMAGENET)
    for part in ("test", "val"):
        if (root / part).is_dir():
            return _read(root / "train", root / part)
    raise DataError(f"{root} has train/, but neither test/ nor val/ for the test set.\n{_layouts(root)}")


def read_imagenet(name: str, folder: Path, target_size: int | None) -> Pool:
    """List the images in ImageNet's `train/` and `val/`. `val/` is the test set: the real one has no public labels.

    Raises FileNotFoundError, which says which folder belongs where, and DataError if classes or images are missing.
    """
    parts = files_of_imagenet(name, folder)
    return _read(parts["train"], parts["val"])


def files_of_folder(path: str, folder: Path, download: bool) -> dict[str, Path]:
    """The folder. Raises FileNotFoundError if there is none."""
    return {"": locate(path, folder)}


def files_of_imagenet(name: str, folder: Path, download: bool = False) -> dict[str, Path]:
    """The folders `train` and `val`. Raises FileNotFoundError, which says what belongs where, if one is missing."""
    root = folder / "imagenet" if (folder / "imagenet").is_dir() or not (folder / "train").is_dir() else folder
    for part in ("train", "val"):
        if not (root / part).is_dir():
            raise FileNotFoundError(
                f"imagenet is not in {root}: {part}/ is missing. ImageNet cannot be downloaded without an account at "
                f"image-net.org: unpack it into {root / 'train'}/<class>/ and {root / 'val'}/<class>/, or "
                "set data.dataset_path to the folder that holds train/ and val/."
            )
    return {part: root / part for part in ("train", "val")}


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
        whole = root.parent if root.name in _PARTS else root
        raise DataError(f"{root} has no class folders, by whose names the images are labelled.\n{_layouts(whole)}")
    return names


def _layouts(root: Path) -> str:
    """Text that shows the two trees that `folder:` reads, and what the folder holds instead."""
    entries = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in os.scandir(root))
    more = f" and {len(entries) - _LISTED:,} more" if len(entries) > _LISTED else ""
    lines = [f"  {root.name}/{line}" if line else "or" for line in _TREES]
    held = f"{root} holds {', '.join(entries[:_LISTED]) or 'nothing'}{more}."
    return "\n".join(["Arrange the images in one of these trees:", *lines, held])


def _read(train: Path, test: Path) -> Pool:
    names, others = _classes(train), _classes(test)
    if names != others:
        lacking = [
            f"{sorted(some)[:_LISTED]}{' ...' if len(some) > _LISTED else ''} only in {place}"
            for some, place in ((set(names) - set(others), train), (set(others) - set(names), test))
            if some
        ]
        raise DataError(f"the classes of {train} and {test} differ: {'; '.join(lacking)}.")
    seen = _Seen()
    return Pool(_list(train, names, seen), _list(test, names, seen), len(names), IMAGENET)


class _Seen:
    """Folders that are read already, by device and inode, so that no link leads to their images a second time."""

    def __init__(self) -> None:
        self.paths: dict[tuple[int, int], Path] = {}

    def add(self, folder: Path) -> None:
        """Add a folder. Raises DataError if it has been added before."""
        found = folder.stat()
        key = found.st_dev, found.st_ino
        if key in self.paths:
            raise DataError(
                f"{folder} and {self.paths[key]} are one folder (by a symbolic link), so that its images would be read "
                "twice. Remove the link."
            )
        self.paths[key] = folder

    def add_above(self, root: Path) -> None:
        """Add `root` and all folders around it, to which a link would lead upwards."""
        for folder in (root.resolve(), *root.resolve().parents):
            found = folder.stat()
            self.paths.setdefault((found.st_dev, found.st_ino), folder)


def _list(root: Path, names: list[str], seen: _Seen) -> Paths:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    seen.add_above(root)
    found = [(*each, label) for label, name in enumerate(names) for each in _images(root / name, seen, IMG_EXTENSIONS)]
    labels = torch.tensor([label for *_, label in found], dtype=torch.int64)
    counts = labels.bincount(minlength=len(names)).tolist()
    empty = [name for name, count in zip(names, counts, strict=True) if not count]
    if empty:
        raise DataError(
            f"{root / empty[0]} holds no images{f', as {len(empty) - 1} other class folders' if empty[1:] else ''}. "
            f"Remove the folder, or put images into it ({', '.join(IMG_EXTENSIONS)})."
        )
    start = len(os.fsencode(root)) + 1
    paths = np.array([os.fsencode(path)[start:] for path, *_ in found])
    return Paths(root, paths, np.array([identity for _, identity, _ in found], dtype=np.int64), labels)


def _images(folder: Path, seen: _Seen, endings: tuple[str, ...]) -> Iterator[tuple[str, digests.Identity]]:
    """Path and identity of all image files in a folder and those in it, folder by folder, sorted by path."""
    found: dict[str, list[os.DirEntry[str]]] = {}
    left = [str(folder)]
    while left:
        place = left.pop()
        seen.add(Path(place))
        with os.scandir(place) as entries:
            inner = list(entries)
        left += [entry.path for entry in inner if entry.is_dir()]
        found[place] = [
            entry
            for entry in inner
            if entry.name.lower().endswith(endings) and entry.name[0] != "." and not entry.is_dir()
        ]
    for place in sorted(found):
        for entry in sorted(found[place], key=lambda entry: entry.name):
            yield entry.path, digests.of_entry(entry)
