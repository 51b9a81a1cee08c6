"""The command line: `biotorch run CONFIG [key.path=value ...]` and what goes with it."""

from __future__ import annotations

import functools
import inspect
import json
import signal
import traceback
import warnings
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import typer
from rich.console import Console

import biotorch
from biotorch import AuditError, ConversionError, data, models, rules
from biotorch.experiment import (
    CheckpointError,
    ConfigError,
    DamagedResultError,
    Interrupted,
    LockedError,
    read,
    run,
)
from biotorch.experiment.attack_progress import AttackProgress
from biotorch.experiment.attacking import attack_run, runs_in
from biotorch.experiment.building import build_model, check_input
from biotorch.experiment.claiming import resolved
from biotorch.experiment.evaluation import evaluate_run
from biotorch.experiment.progress import Progress
from biotorch.experiment.reading import parse_override
from biotorch.experiment.schema import json_schema
from biotorch.report import angle_figure, black_box_figure, example_sheet, table, white_box_figure
from biotorch.report.robustness_table import robustness_table
from biotorch.tables import as_rich
from biotorch.training import DivergenceError, ResumeError
from biotorch.training.infrastructure import is_first_process

_EXIT_CODES = """Exit codes: 0 done; 1 a defect of biotorch (please report it); 2 a mistake in what was asked for;
3 the training diverged; 130 and 143 stopped by Ctrl-C and SIGTERM, with a checkpoint: the same command continues."""

app = typer.Typer(
    name="biotorch",
    help="Train networks without weight transport, and compare learning rules.",
    epilog=_EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_MISTAKE, _DIVERGED = 2, 3

_MISTAKES = (
    AuditError,
    CheckpointError,
    ConfigError,
    ConversionError,
    DamagedResultError,
    LockedError,
    ModuleNotFoundError,
    ResumeError,
    OSError,
    data.DataError,
)

_Command = TypeVar("_Command", bound=Callable[..., None])

_Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", show_default=False)]
_Overrides = Annotated[
    list[str] | None, typer.Argument(help="Changes to it: key.path=value, for example data.dataset=mnist.")
]
_ConfigFile = Annotated[Path, typer.Argument(help="A YAML configuration, such as configs/quickstart.yaml.")]


def _plain_errors(command: _Command) -> _Command:
    """A user's mistake ends with a message and an exit code, never with a traceback; adds `--debug`."""

    @functools.wraps(command)
    def guarded(*args: Any, debug: bool = False, **kwargs: Any) -> None:
        with warnings.catch_warnings():
            warnings.showwarning = _warn_once()
            try:
                command(*args, **kwargs)
            except (*_MISTAKES, DivergenceError) as error:
                if debug:
                    traceback.print_exc()
                if is_first_process() or isinstance(error, data.DataError):  # a file that this process alone has read
                    typer.echo(f"error: {error}", err=True)
                raise typer.Exit(_DIVERGED if isinstance(error, DivergenceError) else _MISTAKE) from error
            except KeyboardInterrupt as error:
                stopped = error.number if isinstance(error, Interrupted) else signal.SIGINT
                if is_first_process():
                    typer.echo(f"\nstopped by {signal.Signals(stopped).name}: the same command continues", err=True)
                raise typer.Exit(128 + stopped) from None

    signature = inspect.signature(command, eval_str=True)
    debug = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_Debug)
    guarded.__signature__ = signature.replace(parameters=[*signature.parameters.values(), debug])  # type: ignore[attr-defined]
    return guarded  # type: ignore[return-value]


def _warn_once() -> Callable[..., None]:
    """A `warnings.showwarning` that prints each message as one line, and once."""
    shown: set[str] = set()

    def show(message: Warning | str, *where: Any, **kwargs: Any) -> None:
        if is_first_process() and str(message) not in shown:
            shown.add(str(message))
            typer.echo(f"warning: {message}", err=True)

    return show


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(biotorch.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command("run", epilog=_EXIT_CODES)
@_plain_errors
def run_command(
    config: _ConfigFile,
    overrides: _Overrides = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Run anew what is finished or begun.")] = False,
) -> None:
    """Run one experiment, or every point of its sweep; print the table and write the figure.

    Finished points are not run again, and an interrupted one continues from its last checkpoint to the same
    result as if it had never been interrupted: repeat the command.

    \b
    biotorch run configs/quickstart.yaml
    biotorch run configs/quickstart.yaml data.dataset=mnist model.mode.type=dfa experiment.name=dfa
    torchrun --nproc-per-node 2 -m biotorch.cli run configs/quickstart.yaml
    """
    study = read(config, overrides or [])
    console = Console(quiet=not is_first_process())
    with Progress(console, len(study.points)) as progress:
        finished = list(run(study, overwrite, progress).values())
    if not is_first_process():
        return
    rows = table(finished)
    console.print(as_rich(rows))
    (study.folder / "table.md").write_text(rows.markdown())
    console.print(f"table   {study.folder / 'table.md'}", soft_wrap=True)
    (study.folder / "angles.png").unlink(missing_ok=True)
    if any({"angles", "gradient_angles"} & record.keys() for result in finished for record in result["history"]):
        console.print(f"figure  {angle_figure(finished, study.folder / 'angles.png')}", soft_wrap=True)
    console.print(f"results {study.folder}", soft_wrap=True)
    if study.config.attacks is not None:
        _attack(study.folder, [], console)


class _Preset(StrEnum):
    quick = "quick"
    paper = "paper"


class _Split(StrEnum):
    test = "test"
    validation = "validation"


class _Which(StrEnum):
    best = "best"
    latest = "latest"


@app.command("evaluate")
@_plain_errors
def evaluate_command(
    run: Annotated[Path, typer.Argument(help="The folder of a run, or one of its .pth files.")],
    overrides: _Overrides = None,
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


@app.command("attack", epilog=_EXIT_CODES)
@_plain_errors
def attack_command(
    run: Annotated[Path, typer.Argument(help="The folder of a run, or of a sweep: all of its finished points.")],
    overrides: _Overrides = None,
    images: Annotated[int | None, typer.Option(help="The first so many of the test set.")] = None,
    autoattack: Annotated[bool, typer.Option("--autoattack", help="Run AutoAttack (standard), too.")] = False,
    preset: Annotated[_Preset | None, typer.Option(help="The settings of the attacks.")] = None,
    twin: Annotated[Path | None, typer.Option(help="A run for transfer attacks; default: by backpropagation.")] = None,
) -> None:
    """Study how robust trained networks are, under the true gradient and under the one that they learn with.

    What is measured already is not measured again: an interrupted study goes on with the same command. The
    settings are those of the section `attacks` of the run's configuration, and can be changed here.

    \b
    biotorch attack runs/robustness
    biotorch attack runs/robustness/rule=fa --autoattack --images 1000 attacks.epsilons='[8/255]'
    """
    flags = {"images": images, "preset": preset and preset.value, "twin": twin and str(twin)}
    flags |= {"autoattack": True} if autoattack else {}
    changes = [parse_override(override) for override in overrides or []]
    changes += [(f"attacks.{name}", value) for name, value in flags.items() if value is not None]
    _attack(run, changes, Console(quiet=not is_first_process()))


def _attack(folder: Path, changes: Sequence[tuple[str, Any]], console: Console) -> None:
    """Study the runs in a folder; print and write what was found."""
    found = []
    with AttackProgress(console) as progress:
        for path in runs_in(folder):
            console.print(f"{path}", highlight=False, soft_wrap=True)
            written, examples = attack_run(path, changes, progress)
            found.append(written)
            sheet = example_sheet(
                examples.images,
                examples.adversarial,
                examples.labels,
                examples.before,
                examples.after,
                None,
                path / "attacks" / "examples.png",
                f"epsilon {examples.epsilon:.3g}, PGD along the true gradient",
            )
            console.print(
                f"  verdict {examples.study.verdict}. {examples.study.sentence}", highlight=False, soft_wrap=True
            )
            for check in examples.study.fired:
                console.print(f"  check   {check.name}: {check.sentence}", highlight=False, soft_wrap=True)
            console.print(f"  report  {path / 'attacks' / 'study.md'}", soft_wrap=True)
            console.print(f"  sheet   {sheet}", soft_wrap=True)
    rows = robustness_table(found)
    console.print(as_rich(rows))
    (folder / "robustness.md").write_text(rows.markdown())
    console.print(f"table   {folder / 'robustness.md'}", soft_wrap=True)
    for name, draw in (("white_box", white_box_figure), ("black_box", black_box_figure)):
        figure = draw(found, folder / f"{name}.png")
        if figure is not None:
            console.print(f"figure  {figure}", soft_wrap=True)


@app.command("audit")
@_plain_errors
def audit_command(config: _ConfigFile, overrides: _Overrides = None) -> None:
    """Prove by experiment what the backward pass of a configuration's network transports."""
    for name, described in read(config, overrides or []).points.items():
        point = resolved(described, earlier=None)
        dataset = data.load(point.data, point.experiment.seed)
        model = build_model(point, dataset.num_classes, dataset.input_shape)
        check_input(model, dataset.train, point)
        inputs, _ = next(iter(dataset.train.batches([torch.arange(min(8, len(dataset.train)))])))
        audit = biotorch.audit(model, inputs)
        typer.echo(f"{name or point.experiment.name}\n{audit}")


@app.command("schema")
@_plain_errors
def schema_command() -> None:
    """Print the JSON schema of configurations, for editors.

    Write it to a file and point an editor at it with a configuration's first line:

    \b
    biotorch schema > biotorch.schema.json
    # yaml-language-server: $schema=biotorch.schema.json
    """
    typer.echo(json.dumps(json_schema(), indent=1))


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
