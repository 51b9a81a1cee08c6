"""Checkpoints on disk: whole or absent, checked when read, and never code."""

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

#: Of what a run saves; 2 has the shape of the examples, and figures per token.
FORMAT = 2


def save(path: Path, content: dict[str, Any], keep_previous: bool = False) -> None:
    """Write tensors and plain values, so that `load` and `torch.load(path, weights_only=True)` read them."""

    def fill(file: IO[bytes]) -> None:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch hides a full disk behind an error of its own
                raise error.__context__ from None
            raise

    write(path, fill, keep_previous)


def load(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: it is truncated or damaged, or a pickle that carries code.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load does not look at the checksums
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged, no checkpoint, or in torch's format of before 2020 ({error})."
        ) from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: the checksum of {damaged} does not fit.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is refused: it holds more than tensors and plain values, and loading it could run code. "
            "Save model.state_dict() instead of the model itself."
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is no checkpoint of torch ({error}).") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state_dict or a checkpoint.")
    return content


def require_format(content: dict[str, Any], source: object) -> None:
    """Raise CheckpointError if what a run has saved at `source` is in another format than this version's."""
    found = content.get("format")
    if found != FORMAT:
        raise CheckpointError(
            f"{source} was written by another version of biotorch, in format {found!r} instead of {FORMAT}: "
            "repeat the run with --overwrite, or use the version that has written it"
        )


def digest(path: Path) -> str:
    """A hash of a file. Raises FileNotFoundError where there is none."""
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def newest(path: Path) -> Path | None:
    """The checkpoint at `path`, or where that is damaged the one before; None where there is neither.

    A damaged one is set aside, so that it never takes the place of the one before.

    Warns:
        UserWarning: a checkpoint is damaged.
    """
    for candidate in (path, previous(path)):
        if not candidate.exists():
            continue
        try:
            load(candidate)
        except CheckpointError as error:
            candidate.replace(candidate.with_name(f"damaged_{candidate.name}"))
            others = candidate == path and previous(path).exists()
            warnings.warn(f"{error} {'The one before is used.' if others else 'Starting again.'}", stacklevel=2)
        else:
            return candidate
    return None


def withdraw(path: Path) -> None:
    """Put the checkpoint before the one at `path` in its place, if there is one."""
    if previous(path).exists():
        previous(path).replace(path)
