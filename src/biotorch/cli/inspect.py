"""Commands that show something: `rules`, `models`, `schema`, `audit`, and `evaluate`, `report` of runs."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from biotorch import _files
from biotorch._tables import Table, plain_console, print_table
from biotorch.cli.errors import ConfigFile, Overrides, is_first_process, plain_errors
from biotorch.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from biotorch.experiment.config import Config
    from biotorch.experiment.reading import Study
    from biotorch.results.collecting import Collection


@plain_errors
def schema_command() -> None:
    """Print the JSON schema of configurations, for editors.

    Write it to a file, and name this file in the first line of a configuration:

    \b
    biotorch schema > biotorch.schema.json
    # yaml-language-server: $schema=biotorch.schema.json
    """
    from biotorch.experiment.documents import json_schema

    typer.echo(json.dumps(json_schema(), indent=1))


@plain_errors
def rules_command() -> None:
    """List the learning rules with their names in words, what they do, what they transport, and their options."""
    from biotorch import rules

    for name in rules.available():
        rule = rules.get(name)
        summary = (rule.__doc__ or "").strip().splitlines()[0]
        status = " (experimental)" if rule.experimental else ""
        typer.echo(f"{name:<16} {rule.title}{status}")
        typer.echo(f"{'':<16} {summary}")
        typer.echo(f"{'':<16} transports: {rule.transports}; options: {', '.join(rules.option_names(name))}")


@plain_errors
def models_command() -> None:
    """List the architectures."""
    from biotorch import models

    for name in models.available():
        typer.echo(name)


class _Split(StrEnum):
    test = "test"
    validation = "validation"


class _Which(StrEnum):
    best = "best"
    latest = "latest"


@plain_errors
def evaluate_command(
    run: Annotated[Path, typer.Argument(help="The folder of a run, or one of its .pth files.")],
    overrides: Overrides = None,
    split: Annotated[_Split, typer.Option(help="The part of the data to measure on.")] = _Split.test,
    which: Annotated[
        _Which, typer.Option(help="The model that is best on the validation set, or the latest.")
    ] = _Which.best,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure the network of a run again, on its own data or on other data (data.dataset=...)."""
    from biotorch.experiment.measure import evaluate_run
    from biotorch.experiment.reading import parse_override

    changes = [parse_override(override) for override in overrides or []]
    result = evaluate_run(run, split.value, which.value, changes)
    if not is_first_process():
        return
    if as_json:
        typer.echo(json.dumps(result, indent=1))
        return
    for name, value in result.items():
        if isinstance(value, float):
            typer.echo(f"{name:<12} {value:.4f}")
        elif not isinstance(value, dict):
            typer.echo(f"{name:<12} {'-' if value is None else value}")


@plain_errors
def audit_command(config: ConfigFile, overrides: Overrides = None) -> None:
    """Prove by experiment whether the backward pass of a configuration's network transports weights.

    Points of a sweep that have the same network and data, such as those of other seeds, are audited once.

    \b
    biotorch audit quickstart model.mode.type=fa
    """
    import torch

    from biotorch import data
    from biotorch.auditing import audit
    from biotorch.experiment.identity import resolved
    from biotorch.experiment.network import build_model, check_input
    from biotorch.experiment.reading import read

    for names, described in _networks(read(config, overrides or [])):
        point = resolved(described, earlier=None)
        dataset = data.load(point.data, point.experiment.seed)
        model = build_model(point, dataset.num_outputs, dataset.input_shape)
        check_input(model, dataset.train, point)
        inputs, _ = next(iter(dataset.train.batches([torch.arange(min(8, len(dataset.train)))])))
        typer.echo(f"{names}\n{audit(model, inputs)}\n")


def _networks(study: Study) -> list[tuple[str, Config]]:
    """Points of a study whose networks differ in more than their seed, with the names of all points that are alike."""
    alike: dict[str, list[str]] = {}
    for name, point in study.points.items():
        settings = (point.model, point.data)
        alike.setdefault("\n".join(each.model_dump_json() for each in settings), []).append(name)
    return [
        (
            (first or study.config.experiment.name) + (f" (the same network: {', '.join(others)})" if others else ""),
            study.points[first],
        )
        for first, *others in alike.values()
    ]


_FIGURES = ("png", "svg", "pdf")
_TABLES = ("md", "tex", "csv")


@plain_errors
def report_command(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders of runs or sweeps, or folders that hold several of them.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The page, one HTML file that needs no other file.")
    ] = None,
    tables: Annotated[
        Path | None, typer.Option("--table", help="A file for the table, whose name ends in .md, .tex or .csv.")
    ] = None,
    figures: Annotated[Path | None, typer.Option(help="A folder for the figures.")] = None,
    formats: Annotated[str, typer.Option(help="Formats of the figures: png, svg, pdf, separated by commas.")] = "png",
    latex: Annotated[bool, typer.Option("--latex", help="Print the table as LaTeX, for the package booktabs.")] = False,
) -> None:
    """Print the table of all runs in the folders; on request, write the table, the figures and a page with everything.

    \b
    biotorch report runs/quickstart -o page.html
    biotorch report runs/quickstart --latex > table.tex
    biotorch report runs/paper --table table1.csv --figures figures --formats pdf,png
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
        raise ConfigError(f"--formats: only {', '.join(_FIGURES)} are known, not {', '.join(sorted(unknown))}")
    collection, console = collect(folders), plain_console(stderr=latex)  # stdout is then LaTeX alone
    tell(collection, console)
    if not collection.runs:
        raise ConfigError(f"no finished run in {', '.join(map(str, folders))}")
    rows = table(collection.results)
    if latex:
        typer.echo(rows.latex(), nl=False)
    else:
        print_table(rows, console)
    if tables is not None:
        tables.parent.mkdir(parents=True, exist_ok=True)
        _files.write_text(tables, _written(rows, tables.suffix))
        console.print(f"table   {tables}", soft_wrap=True)
    if figures is not None:
        for path in draw_all(collection.results, figures, kinds):
            console.print(f"figure  {path}", soft_wrap=True)
    if output is not None:
        console.print(f"page    {write_page(collection, output)}", soft_wrap=True)


def tell(collection: Collection, console: Console) -> None:
    """Print the runs of a collection that are left out, with the reason, and the unfinished ones."""
    for problem in collection.problems:
        console.print(f"left out: {problem}", soft_wrap=True)
    if collection.unfinished:
        names = ", ".join(map(str, collection.unfinished))
        console.print(f"not finished: {names}", soft_wrap=True)


def _written(rows: Table, suffix: str) -> str:
    return {".md": rows.markdown, ".tex": rows.latex, ".csv": rows.csv}[suffix]()
