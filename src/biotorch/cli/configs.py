"""The command `biotorch configs`, which shows the configurations that come with biotorch."""

from __future__ import annotations

from typing import Annotated

import typer

from biotorch._names import unknown
from biotorch.cli.errors import plain_errors
from biotorch.errors import ConfigError


@plain_errors
def configs_command(
    name: Annotated[str | None, typer.Argument(help="Print this configuration instead of the list.")] = None,
) -> None:
    """List the configurations that come with biotorch; with a name, print one, to be changed in a file of your own.

    Commands that take a configuration take these names, too.

    \b
    biotorch configs paper/table1 > mine.yaml
    biotorch run paper/table1 --dry-run
    """
    from biotorch.experiment.shipped import first_sentence, shipped

    found = shipped()
    if name is None:
        for each, path in found.items():
            typer.echo(f"{each:<24} {first_sentence(path)}")
    elif name in found:
        typer.echo(found[name].read_text(encoding="utf-8"), nl=False)
    else:
        raise ConfigError(str(unknown("configuration", name, found)))
