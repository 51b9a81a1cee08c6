"""Files that are whole or absent whenever a process is killed, downloads included; digests of tensors."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING

from filelock import FileLock

from biotorch.errors import disk_is_full

if TYPE_CHECKING:
    import torch

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


def state_hash(state: Mapping[str, torch.Tensor]) -> str:
    """A digest of names, types, shapes and bits of all tensors; equal states, and only they, have equal ones."""
    import torch

    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def complete(folder: Path, name: str, files: Iterable[str], download: Callable[[Path], None]) -> None:
    """Put `files` (paths within `folder`) in place by `download`, which is given an empty folder to fill with them.

    A file appears under its own name only when all are downloaded, and only one process at a time
    downloads `name`; the others wait for it. Whatever a killed process left behind is removed by the next.
    Raises what `download` raises, and OSError where `folder` cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{name}.lock"):
        missing = [file for file in files if not (folder / file).is_file()]
        if not missing:
            return
        # In the same folder, hence on the same disk: renaming is then atomic.
        partial = folder / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            with naming(folder):
                download(partial)
            for file in missing:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                os.replace(partial / file, folder / file)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
