"""Downloads that are whole or not there at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from filelock import FileLock

from biotorch.writing import naming


def complete(folder: Path, name: str, files: Iterable[str], download: Callable[[Path], None]) -> None:
    """Put `files` (paths within `folder`) in place by `download`, which is given an empty folder to fill with them.

    A file appears under its own name only when all are downloaded, and only one process at a time
    downloads `name`; the others wait for it. Whatever a killed process left behind is removed by the next.
    Raises what `download` raises, and OSError where `folder` cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{name}.lock"):
        missing = [file for file in files if not (folder / file).is_file()]
        if not missing:
            return
        # In the same folder, hence on the same disk: renaming is then atomic.
        partial = folder / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            with naming(folder):
                download(partial)
            for file in missing:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                os.replace(partial / file, folder / file)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
