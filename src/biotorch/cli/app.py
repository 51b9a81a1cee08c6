"""The commands and their options."""

from __future__ import annotations

from typing import Annotated

import typer

import biotorch
from biotorch.cli import attack, configs, init, inspect, run
from biotorch.cli.errors import EXIT_CODES, Commands, plain_errors

app = typer.Typer(
    name="biotorch",
    cls=Commands,
    help="Train networks without weight transport, and compare learning rules.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(biotorch.__version__)
        raise typer.Exit


@app.callback()
@plain_errors
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    imports: Annotated[
        list[str] | None,
        typer.Option(
            "--import",
            help="A module or .py file that registers your own rules, layers or networks; may be repeated. "
            "`imports:` in a configuration does the same for `run`.",
        ),
    ] = None,
) -> None:
    if imports:
        from biotorch.experiment.importing import import_all

        import_all(imports)


app.command("init")(init.init_command)
app.command("run", epilog=EXIT_CODES)(run.run_command)
app.command("search", epilog=EXIT_CODES)(run.search_command)
app.command("evaluate")(inspect.evaluate_command)
app.command("attack", epilog=EXIT_CODES)(attack.attack_command)
app.command("report")(inspect.report_command)
app.command("audit")(inspect.audit_command)
app.command("configs")(configs.configs_command)
app.command("schema")(inspect.schema_command)
app.command("rules")(inspect.rules_command)
app.command("models")(inspect.models_command)
