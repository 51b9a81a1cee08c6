"""`biotorch rules`, `biotorch models`, `biotorch schema`: what there is."""

from __future__ import annotations

import json

import typer

from biotorch import models, rules
from biotorch.cli.errors import plain_errors
from biotorch.experiment.schema import json_schema


@plain_errors
def schema_command() -> None:
    """Print the JSON schema of configurations, for editors.

    Write it to a file and point an editor at it with a configuration's first line:

    \b
    biotorch schema > biotorch.schema.json
    # yaml-language-server: $schema=biotorch.schema.json
    """
    typer.echo(json.dumps(json_schema(), indent=1))


@plain_errors
def rules_command() -> None:
    """List the learning rules and their options."""
    for name in rules.available():
        rule = rules.get(name)
        summary = (rule.__doc__ or "").strip().splitlines()[0]
        status = " (experimental)" if rule.experimental else ""
        typer.echo(f"{name:<16} {summary}{status}")
        typer.echo(f"{'':<16} transports: {rule.transports}; options: {', '.join(rules.option_names(name))}")


@plain_errors
def models_command() -> None:
    """List the architectures."""
    for name in models.available():
        typer.echo(name)
