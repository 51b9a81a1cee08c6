"""The newest tables of benchmarks/README.md, written from records."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks.records import Record, by_rule, load, table

BRIEF = "write the tables of benchmarks/README.md from files that --json wrote"

#: Benchmarks whose tables have a column for each rule.
_BY_RULE = ("step", "memory")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command line."""
    parser.add_argument("files", nargs="+", type=Path, help="records; of equal rows, the last one counts")
    parser.add_argument("--readme", type=Path, default=Path(__file__).with_name("README.md"), metavar="FILE")


def write(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Replace the tables of all benchmarks of which the files hold records."""
    try:
        records = [record for path in arguments.files for record in load(path)]
        text = with_tables(arguments.readme.read_text(), records)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    arguments.readme.write_text(text)


def with_tables(text: str, records: Sequence[Record]) -> str:
    """`text` with the table of each benchmark between its marks, `<!-- step -->` and `<!-- /step -->`.

    Raises:
        ValueError: a benchmark has no marks.
    """
    newest = {_key(record): record for record in records}
    for benchmark in dict.fromkeys(record.benchmark for record in newest.values()):
        chosen = [record for record in newest.values() if record.benchmark == benchmark]
        first, last = f"<!-- {benchmark} -->", f"<!-- /{benchmark} -->"
        if first not in text or last not in text:
            raise ValueError(f"the README has no place for {benchmark}: write the lines {first} and {last} into it")
        rows = by_rule(chosen) if benchmark in _BY_RULE else table(chosen)
        machines = "\n".join(
            f"- {machine}, CPU threads: {threads}" if benchmark in _BY_RULE else f"- {machine}"
            for machine, threads in dict.fromkeys((record.machine, record.threads) for record in chosen)
        )
        content = f"{first}\n\n{machines}\n\n{rows}\n\n{last}"
        text = re.sub(rf"{first}.*?{last}", lambda _, content=content: content, text, flags=re.DOTALL)  # type: ignore[misc]
    return text


def _key(record: Record) -> tuple[object, ...]:
    """What tells rows of the tables apart: everything that was chosen, and no figure."""
    settings = tuple(sorted(record.settings.items()))
    return record.benchmark, record.network, record.rule, record.precision, record.compiled, record.threads, settings
