"""The commands `biotorch run` and `biotorch search`, which run a study here or on a cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from biotorch import _files
from biotorch._tables import Table, plain_console, print_table
from biotorch.cli.attack import attack
from biotorch.cli.errors import ConfigFile, Overrides, is_first_process, resumable
from biotorch.errors import BrokenPointsError, ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from biotorch.experiment.config import Config
    from biotorch.experiment.executors import Executor
    from biotorch.experiment.reading import Study
    from biotorch.experiment.results import Result
    from biotorch.experiment.search import Setting
    from biotorch.results.collecting import Collection

#: Name of the page in the folder of the study.
_PAGE = "page.html"
#: The paper's grid of learning rates.
_RATES = "0.1,0.01,0.001,0.0001"


class _Executor(StrEnum):
    local = "local"
    slurm = "slurm"
    ray = "ray"


@resumable
def run_command(
    config: ConfigFile,
    overrides: Overrides = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Start finished and interrupted points again, and overwrite their results."),
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Points at once; default: all with Slurm, else a number that fits the cores and the networks.",
            show_default=False,
        ),
    ] = None,
    executor: Annotated[
        _Executor, typer.Option(help="Where to run the points: on this machine, by Slurm or by Ray.")
    ] = _Executor.local,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the points and estimate their time; write nothing.")
    ] = False,
) -> None:
    """Run one experiment, or every point of its sweep; print the table and write figure and page.

    To continue after an interruption, repeat the command: finished points are not run again, and others continue from
    their last checkpoint to the same result as without interruption. A point that fails does not stop the others.

    \b
    biotorch run quickstart
    biotorch run quickstart data.dataset=mnist model.mode.type=dfa experiment.name=dfa
    biotorch run paper/table1 sweep.experiment.seed='[0, 1]' --jobs 4
    biotorch run paper/table2 --executor slurm cluster.partition=gpu infrastructure.gpus=0
    torchrun --nproc-per-node 2 -m biotorch.cli run quickstart
    """
    from biotorch.experiment import read

    study = read(config, overrides or [])  # before all that takes time to import, so that mistakes are told at once

    from biotorch.experiment.command import command, states
    from biotorch.experiment.display import Progress
    from biotorch.experiment.estimating import best_jobs
    from biotorch.experiment.study import run_points

    console = plain_console(quiet=not is_first_process())
    planned = states(study, overwrite)
    left = {name: point for name, point in study.points.items() if planned[name] != "finished"}
    if jobs is None:
        jobs = max(1, len(left)) if executor is _Executor.slurm else best_jobs(left)
    if dry_run:
        _list(study, planned, left, jobs, console)
        return
    with command(study, overwrite) as discards:
        try:
            with Progress(console, len(study.points)) as progress:
                finished = run_points(study, discards, progress, _executor(executor, jobs, left, study))
        except BrokenPointsError as error:
            if error.results:
                _show(study, list(error.results.values()), console)
            raise
        if is_first_process():
            _show(study, list(finished.values()), console)
            if study.config.attacks is not None:
                from biotorch.results.collecting import collect

                attack(study.folder, [], console)
                _write_page(study, collect(study.folder))


def _executor(kind: _Executor, jobs: int, left: Mapping[str, Config], study: Study) -> Executor | None:
    """Create the executor of the points; None runs one point after another in this process."""
    from biotorch.experiment.executors import Local, Ray, Slurm

    if kind is _Executor.local:
        return Local(jobs) if jobs > 1 and len(left) > 1 else None
    cluster = study.config.cluster
    if kind is _Executor.slurm:
        return Slurm(study.folder, jobs, cluster)
    threads = study.config.infrastructure.threads
    return Ray(jobs, threads, cluster)


def _list(study: Study, planned: Mapping[str, str], left: Mapping[str, Config], jobs: int, console: Console) -> None:
    """Print what would be done with each point, and for those that are left the estimated time alone."""
    from biotorch.experiment.display import duration
    from biotorch.experiment.estimating import estimates

    rows, total = [], 0.0
    times = dict(estimates(left))
    for name, point in study.points.items():
        estimate = times.get(name)
        total += estimate.seconds if estimate else 0.0
        rows.append([name or point.experiment.name, planned[name], duration(estimate.seconds) if estimate else ""])
    shared = f"{duration(total)} one after another" + (
        f", about {duration(total / jobs)} with {jobs} at once" if jobs > 1 else ""
    )
    notes = [
        f"{len(left)} of {len(study.points)} points to run: {shared}. Measured on the first point of each network,",
        "for whole runs from the start; nothing was written.",
    ]
    print_table(Table(str(study.folder), ["point", "", "time alone"], rows, notes), console)


def _show(study: Study, finished: Sequence[Result], console: Console) -> None:
    """Print the table of the finished points; write table, figure and page of all runs in the study's folder."""
    from biotorch.report import angle_figure, table
    from biotorch.results.collecting import collect

    print_table(table(finished), console)
    found = collect(study.folder)
    there = found.results
    _files.write_text(study.folder / "table.md", table(there).markdown())
    console.print(f"table   {study.folder / 'table.md'}", soft_wrap=True)
    (study.folder / "angles.png").unlink(missing_ok=True)
    if any({"angles", "gradient_angles"} & record.keys() for result in there for record in result["history"]):
        console.print(f"figure  {angle_figure(there, study.folder / 'angles.png')}", soft_wrap=True)
    console.print(f"page    {_write_page(study, found)}", soft_wrap=True)
    console.print(f"results {study.folder}", soft_wrap=True)


def _write_page(study: Study, found: Collection) -> Path:
    """Write the page of the results found in the study's folder, and return its path."""
    from biotorch.report.page import write_page

    return write_page(found, study.folder / _PAGE)


@resumable
def search_command(
    config: ConfigFile,
    overrides: Overrides = None,
    rates: Annotated[
        str, typer.Option(help="Learning rates to try; with --trials, the range to choose from.")
    ] = _RATES,
    trials: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of rates that optuna chooses for each setting; default: the rates of --rates are tried.",
            show_default=False,
        ),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at once; default: as for `biotorch run`.", show_default=False)
    ] = None,
) -> None:
    """Find the best learning rate of each rule on validation data; the test set is not used.

    Points of the sweep that differ only in the seed share a rate; the search uses the first seed. The rates are printed
    as a part of the configuration. The same command continues an interrupted search.

    \b
    biotorch search paper/table1 training.hyperparameters.epochs=10
    biotorch search quickstart --rates 0.3,0.1,0.03,0.01
    biotorch search quickstart --rates 0.0001,0.3 --trials 20
    """
    import yaml

    from biotorch.experiment import read, run, search
    from biotorch.experiment.display import Progress
    from biotorch.experiment.estimating import best_jobs
    from biotorch.experiment.executors import Local

    study, numbers, console = read(config, overrides or []), _numbers(rates), plain_console()

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
    _files.write_text(study.folder / "search" / "rates.md", rows.markdown())
    _files.write_text(study.folder / "search" / "rates.yaml", refinements)
    print_table(rows, console)
    console.print("to add to the section `sweep` of the configuration:\n")
    console.print(refinements, soft_wrap=True)
    for path in ("rates.md", "rates.yaml"):
        console.print(f"written {study.folder / 'search' / path}", soft_wrap=True)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--rates: numbers separated by commas are needed, such as 0.1,0.01, not {text!r}") from error


def _table(found: Sequence[Setting], study: Study) -> Table:
    from biotorch.training.figures import judged_figure

    rates = sorted({rate for setting in found for rate in setting.figures}, reverse=True)
    heads = {judged_figure(figures).head: None for setting in found for figures in setting.figures.values() if figures}
    names = [setting.name or study.config.experiment.name for setting in found]
    rows = [
        [
            name,
            *(_cell(setting, rate) for rate in rates),
            "-" if setting.best is None else f"{setting.best:g}",
        ]
        for name, setting in zip(names, found, strict=True)
    ]
    edges = [name for name, setting in zip(names, found, strict=True) if setting.at_the_edge]
    notes = [f"Validation {' or '.join(heads) or 'figures'} of the best epoch, one seed."]
    if edges:
        notes.append(f"Best rate at the end of the tried range, so a better one may lie beyond it: {'; '.join(edges)}.")
    return Table(
        f"{study.config.experiment.name}: learning rates",
        ["setting", *(f"{rate:g}" for rate in rates), "best"],
        rows,
        notes,
    )


def _cell(setting: Setting, rate: float) -> str:
    from biotorch.training.figures import judged, judged_figure

    figures = setting.figures.get(rate)
    if figures is None:
        return ""
    return judged_figure(figures).cell([judged(figures)]) if figures else "diverged"
