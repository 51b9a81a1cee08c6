"""`biotorch attack`: the robustness of trained networks."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from biotorch import writing
from biotorch.cli.arguments import Overrides
from biotorch.cli.errors import plain_errors
from biotorch.experiment.attack_progress import AttackProgress
from biotorch.experiment.attacking import attack_run, runs_in
from biotorch.experiment.reading import parse_override
from biotorch.report import black_box_figure, example_sheet, white_box_figure
from biotorch.report.robustness_table import robustness_table
from biotorch.tables import print_table
from biotorch.training.infrastructure import is_first_process


class _Preset(StrEnum):
    quick = "quick"
    paper = "paper"


@plain_errors
def attack_command(
    run: Annotated[Path, typer.Argument(help="The folder of a run, or of a sweep: all of its finished points.")],
    overrides: Overrides = None,
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
    attack(run, changes, Console(quiet=not is_first_process()))


def attack(folder: Path, changes: Sequence[tuple[str, Any]], console: Console) -> None:
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
    print_table(rows, console)
    writing.write_text(folder / "robustness.md", rows.markdown())
    console.print(f"table   {folder / 'robustness.md'}", soft_wrap=True)
    for name, draw in (("white_box", white_box_figure), ("black_box", black_box_figure)):
        figure = draw(found, folder / f"{name}.png")
        if figure is not None:
            console.print(f"figure  {figure}", soft_wrap=True)
