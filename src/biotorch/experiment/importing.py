"""Import of the user's own modules, which register rules, layers or networks."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

from biotorch._sections import place
from biotorch.errors import OwnModuleError


def check_name(name: str) -> None:
    """Raise ValueError unless `name` is a dotted module name or the path of a .py file."""
    dotted = all(part.isidentifier() for part in name.split("."))
    if not dotted and not (name.endswith(".py") and Path(name).stem.isidentifier()):
        raise ValueError(f"names of modules as `import` takes them, or paths of .py files, are needed, not {name!r}")


def import_all(names: Iterable[str]) -> None:
    """Import each module once per process; the working folder is searched too.

    Raises:
        OwnModuleError: a module does not exist, or raises an error.
    """
    for name in names:
        try:
            _import_file(Path(name)) if name.endswith(".py") else _import_module(name)
        except Exception as error:  # a user's module may raise anything
            missing = isinstance(error, ModuleNotFoundError) and error.name in _prefixes(name)
            if missing or isinstance(error, OwnModuleError):
                raise OwnModuleError(f"imports: {name}: {error}") from error
            *_, last = traceback.extract_tb(error.__traceback__)
            place = f"{last.filename}:{last.lineno}"
            raise OwnModuleError(f"imports: {name}: {type(error).__name__} at {place}: {error}") from error


def _prefixes(name: str) -> set[str]:
    """Dotted name of a module, and the names of the packages around it."""
    parts = name.split(".")
    return {".".join(parts[:end]) for end in range(1, len(parts) + 1)}


def _import_module(name: str) -> None:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    importlib.import_module(name)


def _import_file(path: Path) -> None:
    path = place(path).resolve()
    known = sys.modules.get(path.stem)
    if known is not None:
        if Path(getattr(known, "__file__", None) or "").resolve() != path:
            raise OwnModuleError(f"another module is called {path.stem}; rename the file")
        return
    if not path.is_file():
        raise OwnModuleError("no such file, seen from the working folder")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
