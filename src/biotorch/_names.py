"""Errors for names that do not exist, and for packages that are not installed."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType

from biotorch.errors import MissingPackageError, shortened

#: Longest list of valid names that is shown in full.
_LISTED = 30
#: Longest name for which near ones are looked for, which takes time in proportion to its length.
_NAME = 100


def nearest(name: object, valid: Iterable[str]) -> str:
    """The text ` Did you mean 'x'?` if a valid name is near, else an empty string."""
    names, wanted = list(valid), str(name)
    if not 0 < len(wanted) <= _NAME:
        return ""
    beginning = [each for each in names if _bare(each).startswith(_bare(wanted))]
    near = beginning[:2] or difflib.get_close_matches(wanted, names, n=2, cutoff=0.5)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def _bare(name: str) -> str:
    return name.casefold().replace("_", "").replace("-", "")


def unknown(what: str, name: object, valid: Iterable[str]) -> ValueError:
    """The error for a `name` that is not one of `valid`; `what` is a noun such as "rule"."""
    names = sorted(valid)
    listed = f"Valid: {', '.join(names)}." if len(names) <= _LISTED else f"{len(names)} names are valid."
    return ValueError(f"unknown {what} {shortened(repr(name))}.{nearest(name, names)} {listed}")


def require(package: str, extra: str, user: str) -> ModuleType:
    """Import an optional package, or a module of one.

    Args:
        package: name of the package or module, as in an `import` statement.
        extra: the extra of the distribution that installs the package.
        user: what needs the package, for the message.

    Raises:
        MissingPackageError: the package is not installed.
        ModuleNotFoundError: the package is installed but lacks something that it imports itself.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if not f"{package}.".startswith(f"{error.name}."):
            raise
        message = f"{user} needs {package.partition('.')[0]}: pip install 'biotorch-feedback[{extra}]'"
        raise MissingPackageError(message, name=error.name) from error
