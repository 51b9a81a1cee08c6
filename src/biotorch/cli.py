"""The command line: `biotorch run CONFIG [key.path=value ...]` and what goes with it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from biotorch import ConversionError, models, rules
from biotorch.experiment import ConfigError, DamagedResultError, read, run
from biotorch.experiment.config import points
from biotorch.experiment.progress import Progress
from biotorch.report import angle_figure, table
from biotorch.report.table import as_rich

app = typer.Typer(
    name="biotorch",
    help="Train networks without weight transport, and compare learning rules.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

#: Exit codes: 2 is a user's mistake, 130 an interruption.
_MISTAKE, _INTERRUPTED = 2, 130


_MISTAKES = (
    ConfigError,
    ConversionError,
    DamagedResultError,
    FileNotFoundError,
    FileExistsError,
    FloatingPointError,
)

_Command = TypeVar("_Command", bound=Callable[..., None])


def _plain_errors(command: _Command) -> _Command:
    """A user's mistake ends with a message and exit code 2, never with a traceback."""

    @functools.wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except _MISTAKES as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(_MISTAKE) from error
        except KeyboardInterrupt:
            typer.echo("\ninterrupted: finished points are on disk; the same command runs the others", err=True)
            raise typer.Exit(_INTERRUPTED) from None

    return guarded  # type: ignore[return-value]


@app.command("run")
@_plain_errors
def run_command(
    config: Annotated[Path, typer.Argument(help="A YAML configuration, such as configs/quickstart.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes to it: key.path=value, for example data.dataset=mnist.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Run finished points again.")] = False,
) -> None:
    """Run one experiment, or every point of its sweep; print the table and write the figure.

    Points that are finished are not run again, so an interrupted command continues where it was.
    """
    console = Console()
    settings = read(config, overrides or [])
    base = settings.experiment.output_dir / settings.experiment.name
    grid = points(settings)
    with Progress(console, len(grid), settings.training.hyperparameters.epochs) as progress:
        finished = run(settings, overwrite, progress.epoch, progress.point)
    rows = table(list(finished.values()))
    console.print(as_rich(rows))
    (base / "table.md").write_text(rows.markdown())
    console.print(f"table   {base / 'table.md'}", soft_wrap=True)
    if settings.training.metrics.weight_alignment or settings.training.metrics.gradient_alignment:
        console.print(f"figure  {angle_figure(list(finished.values()), base / 'angles.png')}", soft_wrap=True)
    console.print(f"results {base}", soft_wrap=True)


@app.command("rules")
def rules_command() -> None:
    """List the learning rules and their options."""
    for name in rules.available():
        summary = (rules.get(name).__doc__ or "").strip().splitlines()[0]
        typer.echo(f"{name:<16} {summary}\n{'':<16} options: {', '.join(rules.option_names(name))}")


@app.command("models")
def models_command() -> None:
    """List the architectures."""
    for name in models.available():
        typer.echo(name)


def main() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    main()
