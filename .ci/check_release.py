#!/usr/bin/env python3
"""Check that the tree may be released under a tag, such as v0.1.0: print every problem, and fail if there is one.

python .ci/check_release.py v0.1.0
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

#: Addresses of the project hold this until it is known who publishes it.
PLACEHOLDER = "github.com/OWNER"
_TEXT = {".cff", ".ipynb", ".md", ".py", ".pyi", ".toml", ".yaml", ".yml"}
_FOLDERS = (".github", "docs", "examples", "src")


def problems(root: Path, tag: str) -> list[str]:
    """What forbids to release the tree at `root` under this tag."""
    version = _only(r'__version__ = "(.+)"', root / "src" / "biotorch" / "__init__.py")
    found = []
    if tag != f"v{version}":
        found.append(f"the tag is {tag}, and src/biotorch/__init__.py has the version {version}")
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        found.append(f"{version} is no version of a release: three numbers are needed")
    if f"\n## {version} (" not in (root / "CHANGELOG.md").read_text():
        found.append(f"CHANGELOG.md has no heading `## {version} (date)`")
    if (cited := _only(r"version: (.+)", root / "CITATION.cff")) != version:
        found.append(f"CITATION.cff has the version {cited}, not {version}")
    found += [
        f"{path.relative_to(root)}:{number} holds the placeholder {PLACEHOLDER}"
        for path in _files(root)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if PLACEHOLDER in line
    ]
    return found


def _only(pattern: str, path: Path) -> str:
    """What the group of the pattern is in the one line of the file that fits."""
    [found] = re.findall(rf"^{pattern}$", path.read_text(), flags=re.MULTILINE)
    return str(found)


def _files(root: Path) -> list[Path]:
    inner = [path for folder in _FOLDERS for path in (root / folder).rglob("*")]
    return sorted(path for path in [*root.iterdir(), *inner] if path.suffix in _TEXT and path.is_file())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: check_release.py TAG, for example v0.1.0")
    sys.exit("\n".join(problems(Path(__file__).parents[1], sys.argv[1])) or None)
