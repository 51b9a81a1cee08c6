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
    before = [dict(each) for each in dictionaries]
    try:
        yield
    finally:
        for each, content in zip(dictionaries, before, strict=True):
            each.clear()
            each.update(content)
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None) if folder is not None else None
            if folder is not None and file is not None and folder.resolve() in Path(file).resolve().parents:
                del sys.modules[name]
