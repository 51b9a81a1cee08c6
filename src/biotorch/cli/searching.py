"""`biotorch search`: the learning rate of every rule, before they are compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import typer
import yaml
from rich.console import Console

from biotorch import writing
from biotorch.cli.arguments import ConfigFile, Overrides
from biotorch.cli.errors import plain_errors
from biotorch.experiment import ConfigError, Study, read, run, search
from biotorch.experiment.estimating import best_jobs
from biotorch.experiment.executors import Local
from biotorch.experiment.progress import Progress
from biotorch.experiment.results import Result
from biotorch.tables import Table, print_table


@plain_errors
def search_command(
    config: ConfigFile,
    overrides: Overrides = None,
    rates: Annotated[str, typer.Option(help="Rates to try; with --trials, the ends of a range.")] = ",".join(
        f"{rate:g}" for rate in search.RATES
    ),
    trials: Annotated[
        int | None,
        typer.Option(min=1, help="Rates that optuna chooses, for each setting; default: --rates.", show_default=False),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at once; default: as for `biotorch run`.", show_default=False)
    ] = None,
) -> None:
    """Find the learning rate of each rule by the validation error; the test set is not looked at.

    Points of the sweep that differ by their seed alone share a rate, which is looked for with the first seed. What
    is found is printed as a part of the configuration. A search that was stopped goes on with the same command.

    \b
    biotorch search configs/paper/table1.yaml training.hyperparameters.epochs=10
    biotorch search configs/quickstart.yaml --rates 0.3,0.1,0.03,0.01
    biotorch search configs/quickstart.yaml --rates 0.0001,0.3 --trials 20
    """
    study, numbers, console = read(config, overrides or []), _numbers(rates), Console()

    def run_all(points: Study) -> dict[str, Result]:
        count = jobs or best_jobs(points.points)
        with Progress(console, len(points.points)) as progress:
            return run(points, display=progress, executor=Local(count) if count > 1 else None)

    if trials is None:
        found = search.grid(study, numbers, run_all)
    else:
        seed = study.config.experiment.seed
        found = search.by_optuna(study, min(numbers), max(numbers), trials, seed, run_all)
    rows = _table(found, study)
    refinements = yaml.safe_dump({"when": list(search.as_refinements(found))}, sort_keys=False, default_flow_style=None)
    writing.write_text(study.folder / "search" / "rates.md", rows.markdown())
    writing.write_text(study.folder / "search" / "rates.yaml", refinements)
    print_table(rows, console)
    console.print("for the section `sweep` of the configuration:\n", highlight=False)
    console.print(refinements, highlight=False, markup=False, soft_wrap=True)
    for path in ("rates.md", "rates.yaml"):
        console.print(f"written {study.folder / 'search' / path}", soft_wrap=True)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(
            f"--rates: numbers with commas between them are needed, such as 0.1,0.01, not {text!r}"
        ) from error


def _table(found: Sequence[search.Setting], study: Study) -> Table:
    rates = sorted({rate for setting in found for rate in setting.errors}, reverse=True)
    rows = [
        [
            setting.name or study.config.experiment.name,
            *(_cell(setting, rate) for rate in rates),
            "-" if setting.best is None else f"{setting.best:g}",
        ]
        for setting in found
    ]
    edges = [setting.name for setting in found if setting.at_the_edge]
    notes = ["Validation error (%) of the best epoch, one seed."]
    if edges:
        notes.append(f"At the end of what was tried, where a better rate may lie beyond: {'; '.join(edges)}.")
    return Table(
        f"{study.config.experiment.name}: learning rates",
        ["setting", *(f"{rate:g}" for rate in rates), "best"],
        rows,
        notes,
    )


def _cell(setting: search.Setting, rate: float) -> str:
    error = setting.errors.get(rate)
    if error is None:
        return ""
    return "diverged" if math.isinf(error) else f"{error:.2f}"
