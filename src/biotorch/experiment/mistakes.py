"""Sorts exceptions: a mistake in what was asked for, a diverged training, a full disk, or a defect."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import biotorch
from biotorch import AuditError, ConversionError
from biotorch.data import DataError
from biotorch.experiment.checkpoints import CheckpointError
from biotorch.experiment.folder import LockedError
from biotorch.experiment.importing import OwnModuleError
from biotorch.experiment.reading import ConfigError
from biotorch.experiment.results import DamagedResultError
from biotorch.extras import MissingPackageError
from biotorch.training import DivergenceError, ResumeError
from biotorch.writing import disk_is_full

Kind = Literal["mistake", "diverged", "disk", "defect"]

_PACKAGE = Path(biotorch.__file__).parent
_MISTAKES = (
    AuditError,
    CheckpointError,
    ConfigError,
    ConversionError,
    DamagedResultError,
    DataError,
    LockedError,
    MissingPackageError,
    OwnModuleError,
    ResumeError,
)


def kind_of(error: Exception) -> Kind:
    """The kind of an exception; every one that is not known to be something else is a defect."""
    if isinstance(error, DivergenceError):
        return "diverged"
    if disk_is_full(error):
        return "disk"
    if isinstance(error, _MISTAKES) or (isinstance(error, OSError) and _names_a_path(error)):
        return "mistake"
    return "defect"


def message_of(error: Exception) -> str:
    """The message of an exception, for people; errors of the system name their file first."""
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    reason = "the disk is full" if disk_is_full(error) else error.strerror
    return f"{error.filename or 'a file'}: {reason}"


def _names_a_path(error: OSError) -> bool:
    """Whether the system refused a path outside of this package, or somebody reports a file in words."""
    if error.errno is None:
        return isinstance(error, FileNotFoundError | FileExistsError)
    return error.filename is not None and _PACKAGE not in Path(str(error.filename)).parents
