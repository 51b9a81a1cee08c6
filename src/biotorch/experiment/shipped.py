"""Configurations that come with biotorch, found by name: `quickstart`, `paper/table1`."""

from __future__ import annotations

import os
import re
from pathlib import Path

from biotorch._names import nearest

#: In an installed package the configurations lie beside this file, in a clone beside `src`.
_PLACES = (Path(__file__).parent / "configs", Path(__file__).parents[3] / "configs")
#: Folder of the configurations in a clone. Commands of the docs that name it work anywhere.
_FOLDER = "configs/"


def shipped() -> dict[str, Path]:
    """The configurations by name; empty where the package lies in a zip file."""
    folder = next((place for place in _PLACES if (place / "schema.json").is_file()), None)
    found = sorted(folder.rglob("*.yaml")) if folder else []
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in found if folder}


def find(path: Path) -> Path:
    """The file that is meant by `path`, or `path` itself if there is none.

    A file at `path` comes first, then `configs/<path>.yaml` in the working directory, then the configuration of this
    name that comes with biotorch. `configs/<name>.yaml` is another way to write a name.
    """
    if os.path.isfile(path):
        return path
    name = path.as_posix()
    if name.startswith(_FOLDER):
        name = name.removeprefix(_FOLDER).removesuffix(".yaml")
    here = Path(_FOLDER, f"{name}.yaml")
    return here if os.path.isfile(here) else shipped().get(name, path)


def missing(path: Path) -> str:
    """The message for a `path` at which no configuration was found."""
    beside = [each.name for each in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
    name = path.as_posix().removeprefix(_FOLDER).removesuffix(".yaml")
    guess = nearest(path.name, beside) or nearest(name, shipped())
    names = "" if path.suffix else f" Configurations that come with biotorch: {', '.join(shipped())}."
    return f"no configuration file {path}.{guess}{names}"


def first_sentence(path: Path) -> str:
    """First sentence of the comment at the top of a configuration, without the line for editors."""
    comment = re.match(r"# yaml-language-server.*\n((?:# \S.*\n)+)", path.read_text(encoding="utf-8"))
    text = comment[1].replace("# ", "").replace("\n", " ") if comment else ""
    sentence = re.match(r".+?[.?](?=\s)", text)
    return sentence[0] if sentence else ""
