"""`biotorch report`: runs to a table, figures and a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from biotorch import _files
from biotorch._tables import Table, print_table
from biotorch.cli.errors import plain_errors
from biotorch.errors import ConfigError

if TYPE_CHECKING:
    from biotorch.results.collecting import Collection

_FIGURES = ("png", "svg", "pdf")
_TABLES = ("md", "tex", "csv")


@plain_errors
def report_command(
    folders: Annotated[list[Path], typer.Argument(help="Folders of runs, of sweeps, or of several of either.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The page: one HTML file that needs nothing beside it.")
    ] = None,
    tables: Annotated[
        Path | None, typer.Option("--table", help="The headline table, a file that ends in .md, .tex or .csv.")
    ] = None,
    figures: Annotated[Path | None, typer.Option(help="A folder for still figures.")] = None,
    formats: Annotated[str, typer.Option(help="Of the figures: png, svg, pdf, with commas between them.")] = "png",
) -> None:
    """Print the table of all runs in some folders, and write it, the figures and a page with everything.

    \b
    biotorch report runs/quickstart -o page.html
    biotorch report runs/paper --table table1.tex --figures figures --formats pdf,png
    """
    from biotorch.report import draw_all, table
    from biotorch.report.page import write_page
    from biotorch.results.collecting import collect

    if tables is not None and tables.suffix[1:] not in _TABLES:
        raise ConfigError(f"--table: a name that ends in .{', .'.join(_TABLES)} is needed, not {tables}")
    if output is not None and output.suffix not in (".html", ".htm"):
        raise ConfigError(f"--output: a name that ends in .html is needed, not {output}")
    kinds = formats.split(",")
    if unknown := set(kinds) - set(_FIGURES):
        raise ConfigError(f"--formats: {', '.join(_FIGURES)} are known, not {', '.join(sorted(unknown))}")
    collection, console = collect(folders), Console()
    tell(collection, console)
    if not collection.runs:
        raise ConfigError(f"no finished run in {', '.join(map(str, folders))}")
    rows = table(collection.results)
    print_table(rows, console)
    if tables is not None:
        _files.write_text(tables, _written(rows, tables.suffix))
        console.print(f"table   {tables}", soft_wrap=True)
    if figures is not None:
        for path in draw_all(collection.results, figures, kinds):
            console.print(f"figure  {path}", soft_wrap=True)
    if output is not None:
        console.print(f"page    {write_page(collection, output)}", soft_wrap=True)


def tell(collection: Collection, console: Console) -> None:
    """What of some folders is not shown, and why."""
    for problem in collection.problems:
        console.print(f"left out: {problem}", highlight=False, markup=False, soft_wrap=True)
    if collection.unfinished:
        names = ", ".join(map(str, collection.unfinished))
        console.print(f"not finished: {names}", highlight=False, markup=False, soft_wrap=True)


def _written(rows: Table, suffix: str) -> str:
    return {".md": rows.markdown, ".tex": rows.latex, ".csv": rows.csv}[suffix]()
