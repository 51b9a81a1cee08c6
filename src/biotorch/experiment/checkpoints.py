"""Checkpoint files: written atomically, checked when read, and never executed as code."""

from __future__ import annotations

import hashlib
import pickle
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import torch

from biotorch._files import previous, write
from biotorch.errors import CheckpointError

#: Version of the checkpoints' format; 2 added the shape of the examples, and figures per token.
FORMAT = 2


def save(path: Path, content: dict[str, Any], keep_previous: bool = False) -> None:
    """Write tensors and plain values atomically; `load` and `torch.load(path, weights_only=True)` can read them.

    Args:
        path: file to write.
        content: tensors and plain values by name.
        keep_previous: keep the checkpoint that was at `path`, see `newest`.
    """

    def fill(file: IO[bytes]) -> None:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch hides a full disk behind its own error
                raise error.__context__ from None
            raise

    write(path, fill, keep_previous)


def load(path: Path) -> dict[str, Any]:
    """Read the content of a checkpoint, onto the CPU.

    Raises:
        FileNotFoundError: the file does not exist.
        CheckpointError: the file is truncated or damaged, or is a pickle that contains code.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}; name the folder of a run, or one of its .pth files")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load does not verify the checksums
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged, is not a checkpoint, or has torch's format from before 2020 ({error})."
        ) from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: the checksum of {damaged} does not match.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is refused: it holds more than tensors and plain values, and loading it could run code. "
            "Save model.state_dict() instead of the model itself."
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is not a torch checkpoint ({error}).") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state_dict or a checkpoint.")
    return content


def position(path: Path) -> tuple[int, int] | None:
    """Epoch and update at which a training continues from the checkpoint at `path`, or the previous one, or None.

    The weights stay on disk, so damage in them is not noticed.
    """
    for candidate in (path, previous(path)):
        try:
            content = torch.load(candidate, map_location="cpu", weights_only=True, mmap=True)
            return int(content["epoch"]), int(content["step"])
        except (OSError, RuntimeError, EOFError, LookupError, ValueError, TypeError, pickle.UnpicklingError):
            continue
    return None


def require_format(content: dict[str, Any], source: object) -> None:
    """Raise CheckpointError if the checkpoint `content`, read from `source`, has another format than this version's."""
    found = content.get("format")
    if found != FORMAT:
        raise CheckpointError(
            f"{source} was written by another version of biotorch, in format {found!r} instead of {FORMAT}; "
            "repeat the run with --overwrite, or use the version that wrote it"
        )


def digest(path: Path) -> str:
    """SHA-256 digest of a file. Raises FileNotFoundError if it does not exist."""
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def newest(path: Path) -> Path | None:
    """Path of the newest intact checkpoint: the one at `path`, or else the previous one; None if there is neither.

    A damaged checkpoint is renamed, so that it never replaces the previous one.

    Warns:
        UserWarning: a checkpoint is damaged.
    """
    for candidate in (path, previous(path)):
        if not candidate.exists():
            continue
        try:
            load(candidate)
        except CheckpointError as error:
            candidate.replace(damaged(candidate))
            others = candidate == path and previous(path).exists()
            warnings.warn(f"{error} {'Using the previous checkpoint.' if others else 'Starting again.'}", stacklevel=2)
        else:
            return candidate
    return None


def damaged(path: Path) -> Path:
    """Path that a damaged checkpoint gets instead of `path`."""
    return path.with_name(f"damaged_{path.name}")


def withdraw(path: Path) -> None:
    """Replace the checkpoint at `path` by the previous one, if there is one."""
    if previous(path).exists():
        previous(path).replace(path)
