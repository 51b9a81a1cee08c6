"""The pages of the documentation: their fenced blocks, and how a reader would try them."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from places import ROOT

DOCS = ROOT / "docs"
#: Languages of blocks: run, written into a file, or only shown.
RUN = ("python", "sh")
SHOWN = ("", "text", "yaml", "toml", "json", "bibtex", "latex", "csv", "mermaid", "ini", "pycon")

_FENCE = re.compile(r"^(?P<indent> *)(?P<mark>```+)(?P<language>\w*) *(?P<rest>.*)$")
_NOT_RUN = re.compile(r"^\s*<!-- not run: (?P<reason>.+?) -->\s*$")


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block: its language, its file (or ""), why it is not run (or ""), and its line in the page."""

    language: str
    text: str
    title: str
    not_run: str
    line: int

    @property
    def runs(self) -> bool:
        return self.language in RUN and not self.title and not self.not_run


def every_page() -> list[Path]:
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def is_slow(page: Path) -> bool:
    return page.read_text().startswith("<!-- slow -->")


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page in their order."""
    lines = page.read_text().splitlines()
    number = 0
    while number < len(lines):
        opened = _FENCE.match(lines[number])
        if opened is None:
            number += 1
            continue
        end = number + 1
        while end < len(lines) and lines[end].strip() != opened["mark"]:
            end += 1
        before = next((line for line in reversed(lines[:number]) if line.strip()), "")
        marked = _NOT_RUN.match(before)
        title = re.search(r'title="([^"]+)"', opened["rest"])
        body = [line.removeprefix(opened["indent"]) for line in lines[number + 1 : end]]
        yield Block(
            opened["language"],
            "\n".join(body) + "\n",
            title[1] if title else "",
            marked["reason"] if marked else "",
            number + 1,
        )
        number = end + 1


def files_of(page: Path) -> dict[str, str]:
    """The files that a page's blocks with a title write, by name; the last one of a name counts."""
    return {block.title: block.text for block in blocks(page) if block.title}


def shell(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a block of shell lines in a folder, where `biotorch` and `python` are those of this process."""
    tools = folder.parent / "bin"
    if not tools.exists():
        tools.mkdir()
        for name, call in {"biotorch": "-m biotorch.cli", "python": ""}.items():
            (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {call} "$@"\n')
            (tools / name).chmod(0o755)
    source = str(ROOT / "src")
    environment = os.environ | {
        "PATH": os.pathsep.join([str(tools), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")]).strip(os.pathsep),
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "agg",
    }
    call = ["bash", "-e", "-o", "pipefail", "-c", text]
    return subprocess.run(call, check=False, cwd=folder, env=environment, capture_output=True, text=True)
