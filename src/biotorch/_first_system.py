"""Warning where the first system of 2021 (PyPI's `biotorch` 0.0.x) is installed beside this package of its name."""

from __future__ import annotations

import warnings
from importlib import metadata

_MESSAGE = """\
biotorch {version}, the first system of 2021, is installed in {folder}, too. Both have the import name `biotorch`, so
their files may be mixed, and an import may run the first system's code. Uninstall both, then install this one again:
    pip uninstall -y biotorch biotorch-feedback
    pip install biotorch-feedback    # in a clone: pip install ."""


def message() -> str:
    """Text of the warning, with the cure; empty if the first system is not installed."""
    try:
        found = metadata.distribution("biotorch")
    except metadata.PackageNotFoundError:
        return ""
    if not found.version.startswith("0.0."):
        return ""
    return _MESSAGE.format(version=found.version, folder=found.locate_file(""))


def warn_if_installed() -> None:
    """Warn the importer of `biotorch` if the first system is installed."""
    if text := message():
        warnings.warn(text, RuntimeWarning, stacklevel=3)
