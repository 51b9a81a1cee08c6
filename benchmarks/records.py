"""Records of measurements: what a table and a JSON file hold, with date, commit and processor."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import platform
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import Spread
from biotorch.rules.registry import position

ROOT = Path(__file__).parents[1]


def processor() -> str:
    """Name of the processor."""
    facts = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", facts.read_text(), re.MULTILINE) if facts.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


@functools.cache
def commit() -> str:
    """Short hash of the commit that is measured, with a plus sign if files differ from it; empty outside of git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One row of a table.

    Attributes:
        benchmark: the subcommand.
        network: name of the network.
        rule: name of the rule, or of the attack.
        precision: `32` or `bf16`.
        compiled: whether the networks ran through torch.compile.
        threads: CPU threads of a process.
        ratio: cost as a ratio to the reference of the benchmark, median over the rounds; None if it was not measured.
        quartiles: lower and upper quartile of the ratio.
        limit: the least ratio that the arithmetic of the rule allows, measured in the same rounds.
        peak_memory_ratio: peak memory as a ratio to that of plain PyTorch.
        seconds: median cost of the reference in seconds.
        fused: ratio with torch's fused SGD.
        settings: whatever else tells records of one benchmark apart.
        figures: further figures of the benchmark.
        date, commit, processor, torch: when, of what and where the measurement was taken.
    """

    benchmark: str
    network: str
    rule: str
    precision: str = "32"
    compiled: bool = False
    threads: int = dataclasses.field(default_factory=torch.get_num_threads)
    ratio: float | None = None
    quartiles: tuple[float, float] | None = None
    limit: float | None = None
    peak_memory_ratio: float | None = None
    seconds: float | None = None
    fused: float | None = None
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)
    date: str = dataclasses.field(default_factory=lambda: datetime.date.today().isoformat())
    commit: str = dataclasses.field(default_factory=commit)
    processor: str = dataclasses.field(default_factory=processor)
    torch: str = torch.__version__

    @classmethod
    def of(cls, spread: Spread, **fields: Any) -> Record:
        """Record whose ratio has this spread."""
        return cls(ratio=spread.median, quartiles=(spread.low, spread.high), **fields)

    @property
    def machine(self) -> str:
        """Date, commit, processor and version of torch."""
        return f"{self.date}, commit {self.commit or 'unknown'}, {self.processor}, torch {self.torch}"


def save(path: Path, records: Iterable[Record]) -> None:
    """Write records as a JSON list of flat objects."""
    rows = [dataclasses.asdict(record) for record in records]
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


def load(path: Path) -> list[Record]:
    """Read records that `save` wrote.

    Raises:
        OSError, ValueError: the file cannot be read, or holds something else; the message names the file.
    """
    try:
        rows = json.loads(path.read_text())
        return [Record(**{**row, "quartiles": row["quartiles"] and tuple(row["quartiles"])}) for row in rows]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} holds no records of `python -m benchmarks ... --json FILE`: {error}") from error


# Tables ----------------------------------------------------------------------------------------


def number(value: float | None) -> str:
    """A ratio with two decimals; an empty cell for None."""
    return "" if value is None else f"{value:.2f}"


#: Columns of the table that is printed: heading and cell of a record. Columns whose cells are all empty are left out.
_COLUMNS: dict[str, Callable[[Record], str]] = {
    "network": lambda record: record.network,
    "rule": lambda record: record.rule,
    "precision": lambda record: {"32": "fp32"}.get(record.precision, record.precision),
    "compiled": lambda record: "yes" * record.compiled,
    "threads": lambda record: str(record.threads),
    "settings": lambda record: _pairs(record.settings),
    "reference": lambda record: "" if record.seconds is None else _duration(record.seconds),
    "ratio": lambda record: "" if record.ratio is None else f"**{record.ratio:.2f}**",
    "quartiles": lambda record: "" if record.quartiles is None else " - ".join(map(number, record.quartiles)),
    "limit": lambda record: number(record.limit),
    "fused SGD": lambda record: number(record.fused),
    "peak memory": lambda record: number(record.peak_memory_ratio),
    "figures": lambda record: _pairs(record.figures),
}


def table(records: Sequence[Record]) -> str:
    """Markdown table with a row for each record."""
    rows = [[cell(record) for cell in _COLUMNS.values()] for record in records]
    used = [index for index in range(len(_COLUMNS)) if any(row[index] for row in rows)]
    return _markdown([list(_COLUMNS)[index] for index in used], [[row[index] for index in used] for row in rows])


def brief(record: Record) -> str:
    """The cells of a record that are not empty, in one line."""
    return " ".join(filter(None, (cell(record) for cell in _COLUMNS.values()))).replace("**", "")


def by_rule(records: Sequence[Record]) -> str:
    """Markdown table with a column for each rule; a cell is the ratio and, in brackets, the limit."""
    rules = sorted({record.rule for record in records}, key=position)
    rows: dict[str, dict[str, str]] = {}
    for record in records:
        value = record.peak_memory_ratio if record.ratio is None else record.ratio
        limit = "" if record.limit is None else f" ({record.limit:.2f})"
        place = f"{record.network} {'fp32' if record.precision == '32' else record.precision}"
        label = ", ".join(filter(None, (place, "compiled" * record.compiled, _pairs(record.settings))))
        rows.setdefault(label, {})[record.rule] = f"{number(value)}{limit}"
        if record.fused is not None:
            rows.setdefault(f"{label}, fused SGD", {})[record.rule] = number(record.fused)
    return _markdown(["", *rules], [[label, *(cells.get(rule, "") for rule in rules)] for label, cells in rows.items()])


def _markdown(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_plain(value)}" for key, value in values.items())


def _plain(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _duration(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"
