"""All exceptions of the package, and the classification of an exception as a kind of failure.

    BiotorchError
      ConversionError       the network cannot be converted as asked
      AuditError            the audit cannot decide
      SectionError          a section of a configuration is wrong
      ConfigError           a configuration is wrong
      OwnModuleError        a user's own module cannot be imported
      MissingPackageError   an optional package is not installed
      DataError             files of a data set are damaged, or are other files than before
      NotEnoughMemoryError  a network or a data set does not fit into memory
      CheckpointError       a checkpoint cannot be used
      ResumeError           a training cannot be continued from this state
      DamagedResultError    a results file cannot be read
      LockedError           another process works on the run
      OtherRunError         the folder holds another run, or files that are no run's
      LostFolderError       the folder of a run was deleted or replaced under it
      DivergenceError       loss or weights are no longer finite
      BrokenPointsError     points of a study have no result
      BoundsError           an attack has left its bounds

Each is also a subclass of the built-in exception that fits (ValueError, RuntimeError ...). Outside of this tree,
`Interrupted` is a KeyboardInterrupt, `ConversionWarning` a UserWarning, and `Stopped` no error.
"""

from __future__ import annotations

import dataclasses
import errno
import re
import signal
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

Kind = Literal["mistake", "diverged", "disk", "lost", "died", "defect"]

_PACKAGE = Path(__file__).parent

#: Most characters of a message's line.
_LINE = 2000


class BiotorchError(Exception):
    """Base of the package's exceptions."""


class ConversionError(BiotorchError, ValueError):
    """A network cannot be converted as asked and is unchanged; the message lists every problem."""


class ConversionWarning(UserWarning):
    """A conversion did less than expected: layers stay on backpropagation, no shortcut was cut, a loss is unheard."""


class AuditError(BiotorchError, RuntimeError):
    """The audit cannot decide: a layer never ran, no gradient flows, or passes do not repeat."""


class SectionError(BiotorchError, ValueError):
    """Problems of one section of a configuration, by key, so that each can be reported with its own line.

    Args:
        problems: messages by key of the section; the key "" stands for the section itself.
    """

    def __init__(self, problems: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{key}: {message}" if key else message for key, message in problems.items()))
        self.problems = dict(problems)

    def __reduce__(self) -> tuple[type[SectionError], tuple[dict[str, str]]]:
        """Makes the exception picklable, so that workers can send it."""
        return type(self), (self.problems,)


class ConfigError(BiotorchError, ValueError):
    """A configuration is wrong; the message lists every problem with its place and key path."""


class OwnModuleError(BiotorchError, ValueError):
    """A user's own module does not exist, or fails at import."""


class MissingPackageError(BiotorchError, ModuleNotFoundError):
    """An optional package is not installed; the message names the extra that installs it."""


class DataError(BiotorchError, ValueError):
    """Files of a data set are damaged, in the wrong form or changed; the message names the file and the cure."""


class NotEnoughMemoryError(BiotorchError, MemoryError):
    """A network or a data set needs more memory than the machine has; the message says how much."""


class CheckpointError(BiotorchError, ValueError):
    """A checkpoint cannot be used; the message says why and what to do."""


class ResumeError(BiotorchError, ValueError):
    """A training cannot be continued from this state."""


class DamagedResultError(BiotorchError, ValueError):
    """A results file cannot be read."""


class LockedError(BiotorchError, RuntimeError):
    """Another process works on this run."""


class OtherRunError(BiotorchError, FileExistsError):
    """A folder holds a run of another configuration, or files that no run has written."""


class LostFolderError(BiotorchError, RuntimeError):
    """The folder of a run was deleted or replaced while the run worked in it."""


class DivergenceError(BiotorchError, FloatingPointError):
    """Loss or weights are no longer finite; the message says where, and what to do."""


class BoundsError(BiotorchError, RuntimeError):
    """An attack has left its bounds, which is a defect of the attack and makes it look stronger than it is."""


class BrokenPointsError(BiotorchError, RuntimeError):
    """Some points of a study have no result; the others are finished.

    Attributes:
        results: results of the finished points, by name.
        failures: failures of the other points, by name.
        folder: the study's folder, which has an error.txt for each failure.
    """

    def __init__(self, results: dict[str, dict[str, Any]], failures: dict[str, Failure], folder: Path) -> None:
        self.results, self.failures, self.folder = results, failures, folder
        alike: dict[str, list[str]] = {}
        for name, failure in failures.items():
            alike.setdefault(failure.message, []).append(name)
        lines = [f"{', '.join(names)}: {message}" for message, names in alike.items()]
        count = f"{len(failures)} of {len(results) + len(failures)} points have no result"
        super().__init__("\n  ".join([f"{count}; {folder} has an error.txt for each:", *lines]))

    def __reduce__(self) -> tuple[type[BrokenPointsError], tuple[Any, ...]]:
        return type(self), (self.results, self.failures, self.folder)


class Interrupted(KeyboardInterrupt):
    """A run was stopped by a signal; its last checkpoint is on disk."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    def __reduce__(self) -> tuple[type[Interrupted], tuple[int]]:
        return type(self), (self.number,)


class Stopped(Exception):  # noqa: N818 - not an error
    """A training has stopped because its observer asked for it; the state has been saved."""


@dataclasses.dataclass(frozen=True)
class Failure:
    """The reason why a point has no result.

    Attributes:
        kind: `mistake` of the user, `diverged`, `disk` (the disk is full), `lost` (the folder was deleted), `died` (the
            process was killed or crashed), or `defect` of biotorch or of the user's own code.
        message: one line or more for the user.
        traceback: the traceback; empty if the process died.

    Examples:
        >>> failure = biotorch.experiment.Failure.of(FileNotFoundError("no data"))
        >>> failure.kind, failure.message
        ('mistake', 'no data')
    """

    kind: Kind
    message: str
    traceback: str = ""

    @staticmethod
    def of(error: Exception) -> Failure:
        """Make the failure for an exception."""
        trace = "".join(traceback.format_exception(error))
        kind = kind_of(error)
        return Failure(kind, f"{type(error).__name__}: {error}" if kind == "defect" else message_of(error), trace)


def kind_of(error: Exception) -> Kind:
    """The kind of failure of an exception; exceptions of no other known kind are defects."""
    if isinstance(error, DivergenceError):
        return "diverged"
    if disk_is_full(error):
        return "disk"
    if isinstance(error, LostFolderError):
        return "lost"
    if isinstance(error, BiotorchError) and not isinstance(error, BoundsError):
        return "mistake"
    return "mistake" if isinstance(error, OSError) and _names_a_path(error) else "defect"


def message_of(error: Exception) -> str:
    """The message of an exception for the user; for errors of the system it begins with the file."""
    return "\n".join(shortened(line, _LINE) for line in _message_of(error).split("\n"))


def shortened(text: str, longest: int = 200) -> str:
    """Text of a user for a line of a message: unprintable characters escaped, the middle left out if it is long."""
    if len(text) > longest:
        left_out = f" ... ({len(text):,} characters) ... "
        text = text[: longest * 3 // 4] + left_out + text[-longest // 4 :]
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


_FRAMES = re.compile(r"\s*Exception raised from [^\n]*(\n+frame #[^\n]*)*\n*")


def without_frames(text: str) -> str:
    """Message of torch without the C++ frames that it appends to some."""
    return _FRAMES.sub("", text)


def _message_of(error: Exception) -> str:
    if not isinstance(error, OSError) or error.errno is None:
        return without_frames(str(error))
    reason = "the disk is full" if disk_is_full(error) else error.strerror
    return f"{error.filename or 'a file'}: {reason}"


def disk_is_full(error: BaseException) -> bool:
    """Whether an exception says that a disk or the user's quota on it is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _names_a_path(error: OSError) -> bool:
    """Whether an error is about a path outside of this package, from the system or in words only."""
    if error.errno is None:
        return isinstance(error, FileNotFoundError | FileExistsError)
    return error.filename is not None and _PACKAGE not in Path(str(error.filename)).parents
