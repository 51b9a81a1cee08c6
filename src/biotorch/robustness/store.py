"""Store of measurements on disk, one JSON file each, which later calls reuse."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from biotorch import _files

T = TypeVar("T")


class Store:
    """Folder of measurements; without a folder it stores nothing.

    A measurement is found by its name and its identity, a digest of everything that it depends on.
    """

    def __init__(self, folder: Path | str | None) -> None:
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            _files.remove_unfinished(self.folder)

    def get(self, name: str, identity: str, read: Callable[[Mapping[str, Any]], T]) -> T | None:
        """Stored measurement, made by `read` from the plain values of its file, or None.

        Warns:
            UserWarning: its file is damaged or written by another version, so it will be measured again; or it has no
                checksum.
        """
        path = self._path(name, identity)
        if path is None or not path.is_file():
            return None
        try:
            values = _files.read_json(path)
            found = read(values)
            other = values["identity"] != identity
        except (ValueError, KeyError, TypeError) as error:  # a DamagedResultError is a ValueError
            warnings.warn(f"{path} is damaged or of another version ({error}); it is measured again", stacklevel=3)
            return None
        if other:
            return None
        if "digest" not in values:
            warnings.warn(f"{self.folder} holds measurements of an earlier version, without checksum", stacklevel=3)
        return found

    def put(self, name: str, identity: str, values: Mapping[str, Any]) -> None:
        """Write the plain values of a measurement atomically."""
        path = self._path(name, identity)
        if path is not None:
            _files.write_json(path, {**values, "identity": identity})

    def _path(self, name: str, identity: str) -> Path | None:
        words = re.sub(r"[^\w.=]+", "-", name)
        return None if self.folder is None else self.folder / f"{words}-{identity[:8]}.json"
