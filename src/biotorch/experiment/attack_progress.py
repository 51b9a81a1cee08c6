"""Progress of robustness studies: a live bar on a terminal, one plain line per attack everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from biotorch.experiment.progress import duration
from biotorch.robustness import Display
from biotorch.robustness.measurement import Measurement, Planned


class AttackProgress(Display):
    """Shows the studies of several runs, one after another; a context manager."""

    def __init__(self, console: Console) -> None:
        self.console, self.left = console, 0
        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.bar = self.bars.add_task("images", total=None, visible=False)

    def __enter__(self) -> AttackProgress:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bars.stop()

    def planned(self, attacks: Sequence[Planned], seconds: float) -> None:
        self.left = len(attacks)
        if attacks:
            self._print(
                f"  {len(attacks)} attacks to run, at most {duration(seconds)}: "
                "each is done with an image that it has broken"
            )

    def start(self, attack: Planned, images: int) -> None:
        self.bars.reset(self.bar, total=images, description=_described(attack), visible=True)

    def batch(self, done: int) -> None:
        self.bars.update(self.bar, completed=done)

    def finished(self, measurement: Measurement) -> None:
        if self.left:
            self._print(
                f"  {_described(measurement)}: {measurement.robust_accuracy:.1f} % of {measurement.n} images "
                f"withstand, {duration(measurement.seconds)}"
            )

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)


def _described(attack: Planned | Measurement) -> str:
    gradient = "" if attack.gradient is None else f", {attack.gradient} gradient"
    return f"{attack.label} at {attack.epsilon:.3g}{gradient}"
