"""YAML as everybody reads it."""

from __future__ import annotations

import re
from typing import Any

import yaml

#: PyYAML reads `1e-3` as a string; YAML 1.2, and everybody who writes a learning rate, as a number.
_FLOAT = ("tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789"))


class Loader(yaml.SafeLoader):
    """Reads numbers in scientific notation."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """A date that does not exist, a number of 5,000 digits: told with its line."""
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            raise yaml.MarkedYAMLError(problem=str(error), problem_mark=node.start_mark) from error


class _Dumper(yaml.SafeDumper):
    """Quotes strings that `Loader` would read as numbers."""


Loader.add_implicit_resolver(*_FLOAT)
_Dumper.add_implicit_resolver(*_FLOAT)


def dump(tree: Any) -> str:
    """A tree of plain values as YAML that `Loader` reads back as it was."""
    text: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text
