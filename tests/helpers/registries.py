"""What a user's own code registers, forgotten after a test."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from biotorch.layers import LAYER_TYPES
from biotorch.models import OWN
from biotorch.rules import registry


@contextlib.contextmanager
def as_before(folder: Path | None = None) -> Iterator[None]:
    """Forget afterwards the rules, layers and networks that are registered within, and the modules from a folder."""
    dictionaries = (registry._REGISTRY, registry._ALIASES, LAYER_TYPES, OWN)
    before, modules = [dict(each) for each in dictionaries], set(sys.modules)
    try:
        yield
    finally:
        for each, content in zip(dictionaries, before, strict=True):
            each.clear()
            each.update(content)
        for name in set(sys.modules) - modules if folder is not None else ():
            file = getattr(sys.modules[name], "__file__", None)
            if file is not None and folder.resolve() in Path(file).resolve().parents:
                del sys.modules[name]
