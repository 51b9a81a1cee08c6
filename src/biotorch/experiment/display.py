"""Progress display of studies: live bars on a terminal, one plain line per epoch or attack elsewhere."""

from __future__ import annotations

import dataclasses
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from biotorch import robustness
from biotorch.experiment.config import Config
from biotorch.experiment.results import Result
from biotorch.robustness.measurement import Measurement, Planned
from biotorch.training import Record, TrainingState
from biotorch.training.figures import told

#: Seconds between two readings of the loss, because each reading waits for the GPU.
_LIVE = 0.2


class Display(robustness.Display):
    """Receiver of a study's progress, of runs and of robustness; this base class shows nothing.

    Examples:
        >>> class Lines(biotorch.experiment.Display):
        ...     def finished(self, name, result):
        ...         print(result["config"]["experiment"]["name"], "is finished")
        >>> study = biotorch.experiment.read("study.yaml", ["sweep={}", "experiment.name=one"])
        >>> results = biotorch.experiment.run(study, display=Lines())
        one is finished
    """

    def start(self, name: str, config: Config) -> None:
        """Show that the point `name` starts."""

    def continues(self, name: str, config: Config, epoch: int, step: int) -> None:
        """Show that the point `name` continues in `epoch`, after its update `step`."""
        self.start(name, config)

    def noise(self, done: int, updates: int) -> None:
        """Show that `done` of the updates on noise before the first epoch are finished."""

    def update(self, trainer: TrainingState) -> None:
        """Show one more update of the weights."""

    def epoch(self, record: Record, name: str | None = None) -> None:
        """Show the record of an epoch of the point `name`; None is the point that began last."""

    def finished(self, name: str, result: Result) -> None:
        """Show that the point `name` is finished, now or by an earlier command."""

    def failed(self, names: Sequence[str], message: str) -> None:
        """Show that the points `names` broke, with the error's message."""

    def corruption(self, kind: str, accuracies: Mapping[int, float]) -> None:
        """Show the accuracies (%) by severity under one kind of corruption."""

    def warn(self, message: str) -> None:
        """Show a warning from another process."""


@dataclasses.dataclass
class _Point:
    """Display state of a running point."""

    name: str
    number: int
    epochs: int
    bar: TaskID
    started: float
    measured: int = 0


class Progress(Display):
    """Live bars of a study on a terminal, else one line per epoch or attack; a context manager.

    Args:
        console: console to print on.
        points: number of points of the study, of which one or several run at a time.
    """

    def __init__(self, console: Console, points: int = 0) -> None:
        self.console, self.points, self.done = console, points, 0
        self.running: dict[str, _Point] = {}
        self.present = ""
        self.every: int | None = None
        self.looked, self.has_attacks = time.monotonic(), False
        self.bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            console=console,
            disable=not console.is_terminal,
            redirect_stderr=sys.stderr.isatty(),  # else warnings would leave the file that they go to
        )
        self.overall = self.bars.add_task("points", total=points, status="", visible=points > 1)
        self.step_bar = self.bars.add_task("updates", total=None, status="", visible=False)

    def __enter__(self) -> Progress:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bars.stop()

    def start(self, name: str, config: Config) -> None:
        point = self._begin(name, config)
        if not self.console.is_terminal and (self.done == 0 or len(self.running) > 1):
            self._print(f"{self._place(point)} starts")

    def continues(self, name: str, config: Config, epoch: int, step: int) -> None:
        point = self._begin(name, config)
        self.bars.update(point.bar, completed=max(0, epoch - 1))
        where = f"from epoch {epoch}" + (f", after update {step}" if step else "")
        if not 0 < epoch <= point.epochs:
            where = "after its last epoch" if epoch else "before its first epoch"
        self._print(f"{self._place(point)} continues {where}")

    def _begin(self, name: str, config: Config) -> _Point:
        self.present, epochs = name, 0
        if config.training is not None:
            epochs = config.training.hyperparameters.epochs
            self.every = config.training.metrics.display_iterations
        shown = name or config.experiment.name
        bar = self.bars.add_task(shown, total=epochs or None, status="")
        self.running[name] = _Point(shown, self.done + len(self.running) + 1, epochs, bar, time.monotonic())
        return self.running[name]

    def noise(self, done: int, updates: int) -> None:
        if not self.console.is_terminal:
            if done == 0:
                self._print(f"{self._place(self.running[self.present])} trains on noise: {updates} updates")
        elif time.monotonic() - self.looked >= _LIVE:
            self.looked = time.monotonic()
            self.bars.update(self.step_bar, total=updates, completed=done, description="noise", status="", visible=True)

    def update(self, trainer: TrainingState) -> None:
        live = self.console.is_terminal and time.monotonic() - self.looked >= _LIVE
        line = not self.console.is_terminal and self.every is not None and trainer.step % self.every == 0
        if not live and not line:
            return
        self.looked = time.monotonic()
        figures = trainer.tally.here()
        if not figures:
            return
        status = f"{_shown(figures)}, {trainer.examples_per_second:,.0f} examples/s"
        if live:
            self.bars.update(
                self.step_bar,
                total=trainer.steps,
                completed=trainer.step,
                description=f"epoch {trainer.epoch}",
                status=status,
                visible=True,
            )
        else:
            place = self._place(self.running[self.present])
            self._print(f"{place} epoch {trainer.epoch}, update {trainer.step}/{trainer.steps}: {status}")

    def epoch(self, record: Record, name: str | None = None) -> None:
        point = self.running[self.present if name is None else name]
        number, validation = record["epoch"], f"validation {told(record['validation'])}"
        self.bars.update(point.bar, completed=number, status=validation)
        if number == 0:
            point.started = time.monotonic()
        if self.console.is_terminal or number == 0:
            return
        point.measured += 1
        left = (time.monotonic() - point.started) / point.measured * (point.epochs - number)
        self._print(
            f"{self._place(point)} epoch {number}/{point.epochs}: {_shown(record['train'])}, {validation}, "
            f"{record['examples_per_second']:,.0f} examples/s, {duration(left)} left"
        )

    def finished(self, name: str, result: Result) -> None:
        split = "test" if result["test"] else "validation"
        left_out = len(result["skipped_images"])
        self._end(
            name,
            f"{name or result['config']['experiment']['name']}: "
            f"{split} {told(result[split])}, {duration(result['seconds'])}"
            + (f", {left_out} unreadable images left out (listed in results.json)" if left_out else ""),
        )

    def failed(self, names: Sequence[str], message: str) -> None:
        self.done += len(names) - 1
        self._end(names[0], f"{', '.join(names)}: broken: {message}")

    def warn(self, message: str) -> None:
        warnings.warn(message, stacklevel=2)

    def planned(self, attacks: Sequence[Planned], seconds: float) -> None:
        self.has_attacks = bool(attacks)
        if attacks:
            self._print(
                f"  {len(attacks)} attacks to run, at most {duration(seconds)}; less if they break images early"
            )

    def attack(self, attack: Planned, images: int) -> None:
        self.bars.reset(self.step_bar, total=images, description=_described(attack), visible=True)

    def batch(self, done: int) -> None:
        self.bars.update(self.step_bar, completed=done)

    def measured(self, measurement: Measurement) -> None:
        if self.has_attacks:
            self._print(
                f"  {_described(measurement)}: {measurement.robust_accuracy:.1f} % of {measurement.n} images "
                f"withstand, {duration(measurement.seconds)}"
            )

    def corruption(self, kind: str, accuracies: Mapping[int, float]) -> None:
        told = ", ".join(f"{accuracy:.1f}" for accuracy in accuracies.values())
        self._print(f"  {kind} at severities {min(accuracies)} to {max(accuracies)}: {told} % right")

    def _end(self, name: str, line: str) -> None:
        self.done += 1
        point = self.running.pop(name, None)  # a point that an earlier command finished has not begun here
        if point is not None:
            self.bars.refresh()  # shows the last epoch before the bar goes
            self.bars.remove_task(point.bar)
        self.bars.update(self.step_bar, visible=False)
        self.bars.update(self.overall, completed=self.done)
        self._print(f"[{self.done}/{self.points}] {line}")

    def _place(self, point: _Point) -> str:
        return f"[{point.number}/{self.points}] {point.name}"

    def _print(self, line: str) -> None:
        self.console.print(line, soft_wrap=True)


def _shown(figures: Mapping[str, float]) -> str:
    return f"loss {figures['loss']:.4f}, {told(figures)}"


def duration(seconds: float) -> str:
    """Duration as text, such as `12 s`, `7 min`, `3 h 20 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _described(attack: Planned | Measurement) -> str:
    gradient = "" if attack.gradient is None else f", {attack.gradient} gradient"
    return f"{attack.label} at {attack.epsilon:.3g}{gradient}"
