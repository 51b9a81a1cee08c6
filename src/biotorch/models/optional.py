"""Packages that only some architectures need."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(package: str, extra: str, architecture: str) -> ModuleType:
    """The package, imported now. Raises ModuleNotFoundError naming the extra that installs it."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:  # it is there, and misses something itself
            raise
        message = f"architecture {architecture!r} needs {package}: pip install 'biotorch[{extra}]'"
        raise ModuleNotFoundError(message, name=package) from error
