"""Faces of packages: names that are imported when they are first used, as the package's stub lists them."""

from __future__ import annotations

import ast
import importlib
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from biotorch._names import nearest

#: Whoever uses a face first imports torch, which cannot be imported by two threads at once.
_lock = threading.Lock()


class _Face(NamedTuple):
    getattr: Callable[[str], Any]
    dir: Callable[[], list[str]]
    all: list[str]


def face(package: str, file: str) -> _Face:
    """`__getattr__`, `__dir__` and `__all__` of a package that is light to import.

    Args:
        package: its `__name__`.
        file: its `__file__`; the stub `__init__.pyi` beside it imports every public name, for type checkers and for us.
    """
    spec = sys.modules[package].__spec__
    assert spec is not None
    # Read by the loader, because the package may lie in a zip file.
    stub = ast.parse(spec.loader.get_data(os.path.join(os.path.dirname(file), "__init__.pyi")))  # type: ignore[union-attr]
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    homes = {alias.name: node.module or "" for node in imports for alias in node.names}

    def attribute(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}.{nearest(name, homes)}")
        with _lock:
            importlib.import_module("torch")
        home = homes[name]
        if home == package:
            found: Any = importlib.import_module(f"{package}.{name}")
        else:
            found = getattr(importlib.import_module(home), name)
        setattr(sys.modules[package], name, found)
        return found

    return _Face(attribute, lambda: sorted(homes), sorted(homes))
