"""Command `attack`: robustness of trained networks."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from biotorch import _files
from biotorch._tables import plain_console, print_table
from biotorch.cli.errors import Overrides, is_first_process, resumable

if TYPE_CHECKING:
    from rich.console import Console

    from biotorch.experiment.examples import Examples


class _Preset(StrEnum):
    quick = "quick"
    paper = "paper"


@resumable
def attack_command(
    run: Annotated[
        Path, typer.Argument(help="The folder of a run, or of a sweep, whose finished points are all attacked.")
    ],
    overrides: Overrides = None,
    images: Annotated[int | None, typer.Option(help="Number of test images, from the first on.")] = None,
    autoattack: Annotated[bool, typer.Option("--autoattack", help="Run AutoAttack (standard), too.")] = False,
    smallest: Annotated[
        bool, typer.Option("--smallest", help="Look for the smallest perturbation of each image, too.")
    ] = False,
    save: Annotated[
        bool,
        typer.Option("--save", help="Write the examples of the strongest attack at each epsilon, as 8-bit images."),
    ] = False,
    corruptions: Annotated[
        bool, typer.Option("--corruptions", help="Measure the accuracy under 15 common corruptions, too.")
    ] = False,
    calibration: Annotated[
        bool, typer.Option("--calibration", help="Measure whether confidence agrees with accuracy, too.")
    ] = False,
    preset: Annotated[_Preset | None, typer.Option(help="The set of attacks and settings.")] = None,
    twin: Annotated[
        Path | None,
        typer.Option(
            help="A run whose network takes part in transfer attacks; default: the sweep's run with backpropagation."
        ),
    ] = None,
) -> None:
    """Study how robust trained networks are to attacks by their true gradient and by their rule's gradient.

    Finished measurements are not repeated, so the same command continues an interrupted study. Settings come from the
    section `attacks` of the run's configuration, and can be changed here.

    \b
    biotorch attack runs/robustness
    biotorch attack runs/robustness/rule=fa --autoattack --images 1000 attacks.epsilons='[8/255]'
    biotorch attack runs/robustness/rule=fa --smallest --save
    biotorch attack runs/robustness --corruptions --calibration
    """
    from biotorch.experiment.reading import parse_override

    flags: dict[str, object] = {"images": images, "preset": preset and preset.value, "twin": twin and str(twin)}
    flags |= {"autoattack": autoattack, "smallest": smallest, "corruptions": corruptions, "calibration": calibration}
    changes = [parse_override(override) for override in overrides or []]
    changes += [(f"attacks.{name}", value) for name, value in flags.items() if value is not None and value is not False]
    attack(run, changes, plain_console(quiet=not is_first_process()), save)


def attack(folder: Path, changes: Sequence[tuple[str, Any]], console: Console, save: bool = False) -> None:
    """Study the robustness of the runs in a folder; print and write the results, and examples if `save` is true."""
    from biotorch import report
    from biotorch.experiment.display import Progress
    from biotorch.experiment.measure import attack_run, runs_in
    from biotorch.report.smallest import smallest_table
    from biotorch.report.table import robustness_table

    found = []
    with Progress(console) as progress:
        for path in runs_in(folder):
            console.print(f"{path}", soft_wrap=True)
            written, attacked = attack_run(path, changes, progress, save)
            found.append(written)
            console.print(f"  verdict {attacked.study.verdict}. {attacked.study.sentence}", soft_wrap=True)
            for key in ("trained_on", "measured_on"):
                if key in written:
                    console.print(f"  data    {key.replace('_', ' ')} {written[key]}", soft_wrap=True)
            for key in ("corruptions", "calibration"):
                if key in written:
                    console.print(f"  {written[key]['sentence']}", soft_wrap=True)
            for check in attacked.study.fired:
                console.print(f"  check   {check.name}: {check.sentence}", soft_wrap=True)
            console.print(f"  report  {path / 'attacks' / 'study.md'}", soft_wrap=True)
            console.print(f"  sheet   {_sheet(attacked.examples, path / 'attacks' / 'examples.png')}", soft_wrap=True)
            for each in attacked.saved:
                told = f"{each.examples.attack} leaves {each.unrounded_accuracy:.1f} %, in 8 bits {each.accuracy:.1f} %"
                console.print(f"  saved   {each.path}: {told}", soft_wrap=True)
                console.print(f"  sheet   {_sheet(each.examples, each.path.with_suffix('.png'))}", soft_wrap=True)
    rows = robustness_table(found)
    print_table(rows, console)
    _files.write_text(folder / "robustness.md", rows.markdown())
    console.print(f"table   {folder / 'robustness.md'}", soft_wrap=True)
    if (medians := smallest_table(found)) is not None:
        print_table(medians, console)
        _files.write_text(folder / "smallest.md", medians.markdown())
        console.print(f"table   {folder / 'smallest.md'}", soft_wrap=True)
    for name in ("white_box", "black_box", "smallest", "corruption", "calibration"):
        figure = getattr(report, f"{name}_figure")(found, folder / f"{name}.png")
        if figure is not None:
            console.print(f"figure  {figure}", soft_wrap=True)


def _sheet(examples: Examples, path: Path) -> Path:
    """Write the sheet of some adversarial examples."""
    from biotorch.report import example_sheet

    each, title = examples, f"epsilon {examples.epsilon:.3g}, {examples.attack}"
    return example_sheet(each.images, each.adversarial, each.labels, each.before, each.after, None, path, title)
