"""Errors for names that do not exist, and for packages that are not installed."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType

from biotorch.errors import MissingPackageError

#: More valid names than this are not listed: the nearest ones say enough.
_LISTED = 30


def nearest(name: object, valid: Iterable[str]) -> str:
    """` Did you mean 'x'?` where a valid name is near, else nothing."""
    names = list(valid)
    beginning = [each for each in names if _bare(each).startswith(_bare(str(name)))] if str(name) else []
    near = beginning[:2] or difflib.get_close_matches(str(name), names, n=2, cutoff=0.5)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def _bare(name: str) -> str:
    return name.casefold().replace("_", "").replace("-", "")


def unknown(what: str, name: object, valid: Iterable[str]) -> ValueError:
    """The error for `name` where one of `valid` was meant; `what` is a noun such as "rule"."""
    names = sorted(valid)
    listed = f"Valid: {', '.join(names)}." if len(names) <= _LISTED else f"{len(names)} names are valid."
    return ValueError(f"unknown {what} {name!r}.{nearest(name, names)} {listed}")


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
