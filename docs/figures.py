"""Pictures of the docs, and the demo's table in the README: `make figures` writes them.

The rules are drawn by `drawings.py`. Figure and table of the demo are made from the runs in results/quickstart.
"""

from __future__ import annotations

import re
from pathlib import Path

import drawings  # beside this file

from biotorch.report import angle_figure, table
from biotorch.results.collecting import collect

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
DEMO = ROOT / "results" / "quickstart"
README = ROOT / "README.md"


def with_table(text: str) -> str:
    """The README `text` with the demo's table between the lines `<!-- demo -->` and `<!-- /demo -->`."""
    content = f"<!-- demo -->\n{table(collect(DEMO).results).markdown()}<!-- /demo -->"
    return re.sub(r"<!-- demo -->.*<!-- /demo -->", lambda _: content, text, flags=re.DOTALL)


def main() -> None:
    """Write all pictures and the table."""
    for name, content in drawings.render().items():
        path = IMAGES / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")
    angle_figure(collect(DEMO).results, IMAGES / "quickstart.png")
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
