"""Progress of a sweep: bars on a terminal, one plain line per point elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from biotorch.experiment.results import Result
from biotorch.training.loop import Record


class Progress:
    """Shows `points` runs of `epochs` epochs each; a context manager."""

    def __init__(self, console: Console, points: int, epochs: int) -> None:
        self.console, self.points, self.epochs, self.finished = console, points, epochs, 0
        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self.overall = self.bars.add_task("points", total=points, status="")
        self.current = self.bars.add_task("epochs", total=epochs, status="")

    def __enter__(self) -> Progress:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bars.stop()

    def epoch(self, name: str, record: Record) -> None:
        """One epoch of the point `name` is over."""
        status = f"validation error {record['validation']['error']:.2f} %"
        self.bars.update(self.current, description=name or "epochs", completed=record["epoch"], status=status)

    def point(self, name: str, result: Result) -> None:
        """The point `name` is finished, now or in an earlier command."""
        self.finished += 1
        self.bars.update(self.overall, completed=self.finished)
        self._line(f"[{self.finished}/{self.points}] {name or 'run'}", result)

    def _line(self, label: str, result: dict[str, Any]) -> None:
        split = "test" if result["test"] else "validation"
        self.console.print(
            f"{label}: {split} error {result[split]['error']:.2f} %, {result['seconds']:.1f} s",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
