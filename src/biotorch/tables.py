"""Tables of figures, as text."""

from __future__ import annotations

import dataclasses

from rich.table import Table as RichTable


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells as text, ready to print."""

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str]

    def markdown(self) -> str:
        """The table as GitHub Markdown."""
        lines = [
            f"**{self.title}**",
            "",
            f"| {' | '.join(self.header)} |",
            f"|{'---|' * len(self.header)}",
            *(f"| {' | '.join(row)} |" for row in self.rows),
            "",
            *(f"{note}  " for note in self.notes),
        ]
        return "\n".join(lines).rstrip() + "\n"


def as_rich(content: Table) -> RichTable:
    """The table for a terminal."""
    rendered = RichTable(title=content.title, caption="\n".join(content.notes), caption_justify="left")
    for index, name in enumerate(content.header):
        rendered.add_column(name, justify="left" if index == 0 else "right")
    for row in content.rows:
        rendered.add_row(*row)
    return rendered
