"""Errors for names that do not exist: they name the value, the place and the nearest valid name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

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
