"""What is a mistake in what was asked for, and no defect."""

from __future__ import annotations

from biotorch import AuditError, ConversionError
from biotorch.data import DataError
from biotorch.experiment.checkpoints import CheckpointError
from biotorch.experiment.folder import LockedError
from biotorch.experiment.importing import OwnModuleError
from biotorch.experiment.reading import ConfigError
from biotorch.experiment.results import DamagedResultError
from biotorch.training import ResumeError

#: They are told by their message alone.
MISTAKES = (
    AuditError,
    CheckpointError,
    ConfigError,
    ConversionError,
    DamagedResultError,
    LockedError,
    ModuleNotFoundError,
    ResumeError,
    OSError,
    OwnModuleError,
    DataError,
)
