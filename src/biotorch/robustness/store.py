"""Measurements on disk, one JSON file each: what is there is not measured again."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

from biotorch import writing
from biotorch.robustness.measurement import Measurement, Planned


class Store:
    """The measurements in a folder; without a folder, nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            writing.remove_unfinished(folder)

    def get(self, planned: Planned, identity: str) -> Measurement | None:
        """The measurement, if it is there.

        Warns:
            UserWarning: its file is damaged or of another version; it is measured again.
        """
        path = self._path(planned, identity)
        if path is None or not path.is_file():
            return None
        try:
            found = Measurement.from_json(json.loads(path.read_text()))
        except (ValueError, KeyError, TypeError) as error:  # json's errors are ValueErrors
            warnings.warn(f"{path} is damaged or of another version ({error}): measured again", stacklevel=2)
            return None
        return found if found.identity == identity else None

    def put(self, planned: Planned, measurement: Measurement) -> None:
        """Keep a measurement: the whole of it or nothing."""
        path = self._path(planned, measurement.identity)
        if path is not None:
            writing.write_text(path, json.dumps(measurement.to_json(), indent=1, allow_nan=False) + "\n")

    def _path(self, planned: Planned, identity: str) -> Path | None:
        if self.folder is None:
            return None
        words = [planned.label, planned.gradient or "", f"epsilon={planned.epsilon:.4g}", identity[:8]]
        return self.folder / (re.sub(r"[^\w.=]+", "-", " ".join(filter(None, words))) + ".json")
