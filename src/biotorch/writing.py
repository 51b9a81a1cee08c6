"""Files that are whole or absent, whenever a process is killed."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

#: How the names of files end that a killed process leaves half written.
_UNFINISHED = ".unfinished"


def write(path: Path, fill: Callable[[IO[bytes]], object], keep_previous: bool = False) -> None:
    """All of a file or nothing: a temporary file, synced, then renamed.

    With `keep_previous` the file that was there stays, under the name of `previous(path)`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_UNFINISHED}")
    try:
        with naming(path), temporary.open("wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        if keep_previous and path.exists():
            path.replace(previous(path))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Make the error of a full disk name `path`; from the system it names no file, or a temporary one."""
    try:
        yield
    except OSError as error:
        if disk_is_full(error):
            error.filename = str(path)
        raise


def disk_is_full(error: BaseException) -> bool:
    """Whether an exception says that a disk, or what a user may store on it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _sync_folder(folder: Path) -> None:
    """The renames themselves have to reach the disk."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """All of `text` or nothing."""
    write(path, lambda file: file.write(text.encode()))


def previous(path: Path) -> Path:
    """Where the checkpoint before the one at `path` is."""
    return path.with_name(f"previous_{path.name}")


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes have left half written."""
    for path in folder.glob(f".*{_UNFINISHED}"):
        path.unlink(missing_ok=True)
