"""Tables as Markdown, LaTeX, CSV and on a terminal."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable


@dataclasses.dataclass(frozen=True)
class Table:
    """Table whose cells are text, ready to print."""

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str]
    #: Versions and machine that the figures are from, printed below the notes; in LaTeX a comment.
    source: str = ""

    def markdown(self) -> str:
        """The table as GitHub Markdown."""
        lines = [
            f"**{self.title}**",
            "",
            _markdown_row(self.header),
            f"|{'---|' * len(self.header)}",
            *map(_markdown_row, self.rows),
            "",
            *(f"{note}  " for note in self.below),
        ]
        return "\n".join(lines).rstrip() + "\n"

    @property
    def below(self) -> list[str]:
        """Lines below the table: the notes, and where the figures are from."""
        return [*self.notes, *([self.source] if self.source else [])]

    def latex(self) -> str:
        """The table for LaTeX, with the package booktabs. Its label is `tab:` with the words of the title."""
        columns = "l" + "r" * (len(self.header) - 1)
        label = re.sub(r"[^a-z0-9]+", "-", self.title.casefold()).strip("-")
        lines = [
            *([f"% {self.source}"] if self.source else []),
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex(self.title)}. {_latex(' '.join(self.notes))}}}",
            rf"\label{{tab:{label}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            _latex_row(self.header),
            r"\midrule",
            *map(_latex_row, self.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        return "\n".join(lines) + "\n"

    def csv(self) -> str:
        """Header and rows as comma-separated values; title and notes are left out."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([self.header, *self.rows])
        return text.getvalue()


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(_latex, cells)) + r" \\"


#: Replacements for characters that LaTeX interprets, and for characters that older engines do not know.
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "→": r"$\to$",
    "°": r"$^\circ$", "ε": r"$\varepsilon$", "∞": r"$\infty$", "≥": r"$\geq$", "≤": r"$\leq$",
}  # fmt: skip


def _latex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text)


def plain_console(quiet: bool = False, stderr: bool = False) -> Console:
    """Console that prints text as it is, because names, paths and messages of users are no markup and no emoji codes.

    Args:
        quiet: print nothing.
        stderr: print to stderr instead of stdout.
    """
    return Console(markup=False, emoji=False, highlight=False, quiet=quiet, stderr=stderr)


def print_table(content: Table, console: Console) -> None:
    """Print the table on a terminal. On a narrow one, lines run past the edge, because no figure may be cut off."""
    rendered = RichTable(title=content.title, title_justify="left")
    for index, name in enumerate(content.header):
        cells = [row[index] for row in content.rows]
        longest = max([*map(cell_len, cells), *map(cell_len, name.split())], default=0)
        rendered.add_column(name, justify="left" if index == 0 else "right", min_width=longest)
    for row in content.rows:
        rendered.add_row(*row)
    needed = sum(column.min_width or 0 for column in rendered.columns) + 3 * len(rendered.columns) + 1
    console.print(rendered, width=max(console.width, needed), crop=False)
    for note in content.below:
        console.print(note)
