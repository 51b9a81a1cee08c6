"""Atomic writes and downloads, which leave a file whole or absent if a process is killed, and digests."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from filelock import FileLock

from biotorch.errors import DamagedResultError, OtherRunError, disk_is_full

if TYPE_CHECKING:
    import torch

#: Ending of the names of temporary files, which a killed process leaves half written.
_UNFINISHED = ".unfinished"

#: File that marks the folder of an unfinished download as ours, so that it may be removed.
_PARTIAL = ".biotorch"


def write(path: Path, fill: Callable[[IO[bytes]], object], keep_previous: bool = False) -> None:
    """Write a file as a whole or not at all: fill a temporary file, sync it and rename it.

    With `keep_previous` an existing file stays, under the name `previous(path)`. The folder must exist, because to
    create it would bring back a run's folder that somebody has deleted.
    """
    _remove_left(path)
    temporary = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}{_UNFINISHED}")
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


def _remove_left(path: Path) -> None:
    """Remove what killed processes of this machine have left of `path`; another one may be writing it just now."""
    for left in path.parent.glob(f"{glob.escape(f'.{path.name}.{platform.node()}.')}*{_UNFINISHED}"):
        number = left.name.removesuffix(_UNFINISHED).rpartition(".")[2]
        if number.isdecimal() and not _alive(int(number)):
            left.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Make the error of a full disk name `path`, because the system names no file or a temporary one."""
    try:
        yield
    except OSError as error:
        if disk_is_full(error):
            error.filename = str(path)
        raise


def _sync_folder(folder: Path) -> None:
    """Sync a folder, so that renames in it reach the disk."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write `text` to a file as a whole or not at all."""
    write(path, lambda file: file.write(text.encode()))


def write_json(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Write plain values as strict JSON, with a digest of them under the key `digest`, and return what was written."""
    written: dict[str, Any] = json.loads(json.dumps(content, allow_nan=False))
    written["digest"] = _digest(written)
    write_text(path, json.dumps(written, indent=1) + "\n")
    return written


def read_json(path: Path) -> dict[str, Any]:
    """Read an object from a JSON file. One without the key `digest` was written by an earlier version.

    Raises:
        FileNotFoundError: the file does not exist.
        DamagedResultError: the file holds no JSON object, or another content than its digest says.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # also bytes that are no text, and numbers that are too long
        raise DamagedResultError(f"{path} is damaged ({error})") from error
    if not isinstance(content, dict):
        raise DamagedResultError(f"{path} is damaged (it holds no JSON object)")
    if "digest" in content and content["digest"] != _digest(content):
        raise DamagedResultError(f"{path} is damaged (its content differs from its digest)")
    return content


def _digest(content: Mapping[str, Any]) -> str:
    """Digest of plain values, without their own digest, whatever their order and layout in the file."""
    values = {key: value for key, value in content.items() if key != "digest"}
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=16).hexdigest()


def previous(path: Path) -> Path:
    """Path of the file that `path` replaced, if it was kept."""
    return path.with_name(f"previous_{path.name}")


def remove_unfinished(folder: Path) -> None:
    """Remove files that killed processes left half written."""
    for path in folder.glob(f".*{_UNFINISHED}"):
        if re.search(rf"\.\d+{_UNFINISHED}$", path.name):
            path.unlink(missing_ok=True)


class Anchor:
    """Hold on a file or folder, which tells whether its path still leads to it.

    The open descriptor keeps the system from giving the same inode to whatever takes the place of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY)

    def holds(self) -> bool:
        """Whether the path leads to the same file as at the start."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self.path))
        except OSError:
            return False

    def release(self) -> None:
        """Close the descriptor."""
        os.close(self._descriptor)


def state_hash(state: Mapping[str, torch.Tensor]) -> str:
    """Digest of the names, types, shapes and bits of all tensors; only equal states have equal digests."""
    import torch

    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def complete(folder: Path, name: str, files: Iterable[str], download: Callable[[Path], None]) -> None:
    """Download `files` (paths within `folder`) unless they are there; `download` fills an empty folder with them.

    A file appears under its own name only when all are downloaded. Only one process at a time downloads `name`;
    the others wait for it. The next process removes whatever a killed process left behind.

    Raises:
        OtherRunError: somebody else's folder has the name that the download needs.
        OSError: `folder` cannot be written to. Errors of `download` are passed on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{name}.lock"):
        missing = [file for file in files if not (folder / file).is_file()]
        if not missing:
            return
        # In the same folder, and so on the same disk, where renaming is atomic.
        partial = folder / f".{name}.partial"
        _remove_partial(partial)
        partial.mkdir()
        (partial / _PARTIAL).touch()
        try:
            with naming(folder):
                download(partial)
            for file in missing:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                os.replace(partial / file, folder / file)
        finally:
            _remove_partial(partial)


def _remove_partial(partial: Path) -> None:
    """Remove the folder of an unfinished download, its mark last; a folder without the mark is somebody else's."""
    content = list(partial.iterdir()) if partial.is_dir() else []
    if content and partial / _PARTIAL not in content:
        raise OtherRunError(f"{partial} is in the way and was not written by biotorch; move it elsewhere")
    for path in content:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != _PARTIAL:
            path.unlink()
    (partial / _PARTIAL).unlink(missing_ok=True)
    if partial.is_dir():
        partial.rmdir()
