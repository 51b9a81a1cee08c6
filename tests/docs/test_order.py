"""Rules stand in one order in every table of the docs."""

import itertools
import re

import pytest
from places import ROOT

from biotorch import rules
from biotorch.rules.registry import position

PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def named(cell):
    """The rule that a cell of a table begins with, or None."""
    found = re.match(r"`?(\w+)`?(?= |,|$)", cell.strip())
    return found[1] if found and rules.is_known(found[1]) else None


def listings(text):
    """Names of the rules in each table: those that its rows begin with, and those of its head.

    Where a rule comes back after another one, the table lists something else.
    """
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        head, _, *rows = [[*map(named, line.strip().strip("|").split("|"))] for line in table.splitlines()]
        for listing in (head, [row[0] for row in rows]):
            names = [name for name, _ in itertools.groupby(filter(None, listing))]
            yield names if len(set(names)) == len(names) else []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_rules_stand_in_one_order_in_every_table(page):
    for listing in listings(page.read_text()):
        assert listing == sorted(listing, key=position)


def test_tables_are_found():
    rows = "| rule | n |\n|---|---|\n| `kp` | 1 |\n| fa, usf | 2 |\n| fa x | 2 |\n| flipped | 3 |\n"
    other = "| | fa | dfa |\n|---|---|---|\n| fa | 1 | 2 |\n| kp | 1 | 2 |\n| fa | 1 | 2 |\n"
    assert [*listings(f"text\n\n{rows}\n\n{other}")] == [
        [], ["kp", "fa"], ["fa", "dfa"], [],
    ]  # fmt: skip
