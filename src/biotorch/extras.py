"""Packages that only some architectures, data sets, logs and executors need."""

from __future__ import annotations

import importlib
from types import ModuleType


class MissingPackageError(ModuleNotFoundError):
    """An optional package is not installed; the message names the extra that installs it."""


def require(package: str, extra: str, user: str) -> ModuleType:
    """Import an optional package, or a module of one.

    Args:
        package: as `import` takes it.
        extra: of biotorch, which installs it.
        user: what needs it, for the message.

    Raises:
        MissingPackageError: it is not installed. Where the package is there and misses something itself, the
            error is its own.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if not f"{package}.".startswith(f"{error.name}."):
            raise
        message = f"{user} needs {package.partition('.')[0]}: pip install 'biotorch[{extra}]'"
        raise MissingPackageError(message, name=error.name) from error
