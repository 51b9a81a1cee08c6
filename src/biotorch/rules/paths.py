"""Import paths `biotorch.layers.<rule>` and `biotorch.models.<rule>`, one for every registered rule."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NamedTuple

from biotorch._names import unknown
from biotorch.rules.registry import available, is_known, own_name


class _Finder(MetaPathFinder, Loader):
    """Import finder that makes the module `package.<rule>` when it is imported; files of the package come first."""

    def __init__(self, package: str, contents: Callable[[str], dict[str, Any]]) -> None:
        self.package, self.contents = package, contents

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        package, _, rule = fullname.rpartition(".")
        found = package == self.package and is_known(rule)
        return ModuleSpec(fullname, self, origin="the registry of rules") if found else None

    def exec_module(self, module: ModuleType) -> None:
        spelled = module.__name__.rpartition(".")[2]
        rule = own_name(spelled)
        if rule != spelled:  # one module for all spellings of a name
            sys.modules[module.__name__] = importlib.import_module(f"{self.package}.{rule}")
            return
        module.__doc__ = f"The names of `{self.package}` under the rule `{rule}`."
        vars(module).update(self.contents(rule))


class _Namespace(NamedTuple):
    getattr: Callable[[str], Any]
    dir: Callable[[], list[str]]


def per_rule(package: str, contents: Callable[[str], dict[str, Any]]) -> _Namespace:
    """Make `package.<rule>` importable for every rule, including rules that are registered later.

    Args:
        package: full name of a package, which calls this function in its `__init__`.
        contents: function from a rule's name to the attributes of its module.

    Returns:
        `__getattr__` and `__dir__` of the package, so that `package.<rule>` needs no import statement.
    """
    sys.meta_path.append(_Finder(package, contents))

    def attribute(name: str) -> Any:
        importlib.import_module("biotorch.rules")  # another thread may be importing it, rule by rule
        if name.startswith("_"):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if is_known(name):
            return importlib.import_module(f"{package}.{own_name(name)}")
        raise AttributeError(f"{package}: {unknown('name', name, directory())}")

    def directory() -> list[str]:
        return sorted({*sys.modules[package].__all__, *available()})

    return _Namespace(attribute, directory)
