"""`biotorch evaluate` and `biotorch audit`: one network under examination."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer

import biotorch
from biotorch import data
from biotorch.cli.arguments import ConfigFile, Overrides
from biotorch.cli.errors import plain_errors
from biotorch.experiment import read
from biotorch.experiment.building import build_model, check_input
from biotorch.experiment.claiming import resolved
from biotorch.experiment.evaluation import evaluate_run
from biotorch.experiment.reading import parse_override
from biotorch.training.infrastructure import is_first_process


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
    split: Annotated[_Split, typer.Option(help="Which part of the data.")] = _Split.test,
    which: Annotated[_Which, typer.Option(help="The best model on validation, or the latest.")] = _Which.best,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure the network of a run again, on its own data or on other (data.dataset=...)."""
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
            typer.echo(f"{name:<12} {value}")


@plain_errors
def audit_command(config: ConfigFile, overrides: Overrides = None) -> None:
    """Prove by experiment what the backward pass of a configuration's network transports."""
    for name, described in read(config, overrides or []).points.items():
        point = resolved(described, earlier=None)
        dataset = data.load(point.data, point.experiment.seed)
        model = build_model(point, dataset.num_classes, dataset.input_shape)
        check_input(model, dataset.train, point)
        inputs, _ = next(iter(dataset.train.batches([torch.arange(min(8, len(dataset.train)))])))
        audit = biotorch.audit(model, inputs)
        typer.echo(f"{name or point.experiment.name}\n{audit}")
