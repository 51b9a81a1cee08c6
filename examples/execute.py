"""Execute the notebooks of this folder and save them with their outputs: `python examples/execute.py`.

Arguments are paths of notebooks; without any, all are executed. `make notebooks` does the same.
"""

from __future__ import annotations

import base64
import io
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image
from traitlets.config import Config

FOLDER = Path(__file__).parent


def executed(path: Path, settings: Mapping[str, Any] | None = None) -> nbformat.NotebookNode:
    """The notebook with the outputs of an execution in an empty folder, in one thread so that the figures repeat.

    Args:
        path: the notebook.
        settings: values that replace those in the first cell with code, by name.

    Raises:
        CellExecutionError: a cell failed.
        ValueError: a setting is unknown, or a cell has printed a warning.
    """
    notebook = nbformat.read(path, as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    source = first.source
    for name, value in (settings or {}).items():
        if f"{name} = " not in source:
            raise ValueError(f"{path}: no setting {name}")
        first.source += f"\n{name} = {value!r}"
    # The warning is about ipywidgets, which tqdm misses as soon as another package imports it.
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore:IProgress not found"}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as sockets:
        # Sockets in files, because other users of the machine could listen to TCP.
        private = Config(KernelManager={"transport": "ipc", "ip": f"{sockets}/kernel"})
        resources = {"metadata": {"path": folder}}
        NotebookClient(
            notebook, timeout=600, resources=resources, record_timing=False, coalesce_streams=True, config=private
        ).execute()
    first.source = source
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if output.get("name") == "stderr":
                raise ValueError(f"{path}: a cell has printed to stderr:\n{output.text}")
            if "image/png" in (data := output.get("data", {})):
                data["image/png"] = _small(data["image/png"])
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def _small(picture: str) -> str:
    """A PNG in base64 with 128 colours, which takes a third of the bytes."""
    file = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB").quantize(128).save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def main(paths: list[str]) -> None:
    for path in map(Path, paths) if paths else sorted(FOLDER.glob("*.ipynb")):
        nbformat.write(executed(path), path)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
