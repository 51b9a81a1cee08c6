"""Overview of the page: dot plots of errors by rule, the headline table, and differences to backpropagation."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from biotorch._tables import Table
from biotorch.experiment.results import Result
from biotorch.report.page.comparison import SETTING, Entry, Setting, title
from biotorch.report.series import hidden_angles
from biotorch.report.style import on_dark, style
from biotorch.report.table import ANGLE_HEADS, table
from biotorch.report.words import explained
from biotorch.results.groups import at, method

#: Facets by which a reader can choose runs, with their keys in the configuration.
FACETS = {
    "rule": "model.mode.type",
    "network": "model.architecture",
    "dataset": "data.dataset",
    "optimizer": "training.optimizer.type",
    "seed": "experiment.seed",
}

#: Start of a numeric cell; a dash stands for a missing number.
_NUMBER = re.compile(r"[-+]?\d|\[[-+]?\d|-$")

#: Mark of intervals that exclude 0.
_CLEAR = "*"


def facets_of(result: Mapping[str, Any]) -> dict[str, str]:
    """Values of a run's facets, as text."""
    found = {name: at(dict(result), path) for name, path in FACETS.items()}
    values = {name: "-" if value is None else str(value) for name, value in found.items()}
    return {**values, "rule": method(dict(result))}


def _facets(setting: Setting, entry: Entry) -> dict[str, str]:
    """Values of the facets, except the seed, that an entry of a setting has."""
    names = setting.names
    where = {"network": names["network"], "dataset": names["data set"], "optimizer": names["optimizer"]}
    return {"rule": entry.rule, **where}


@dataclasses.dataclass(frozen=True)
class Rows:
    """Table with the facets of every row, so that the page can filter rows, and the column that names the rule."""

    table: Table
    facets: list[dict[str, str]]
    rule: int

    @property
    def kinds(self) -> list[str]:
        """Kind of every column, `number` or `text`."""
        columns = zip(*self.table.rows, strict=True)
        return ["number" if all(_NUMBER.match(cell) for cell in column) else "text" for column in columns]

    @property
    def spelled(self) -> list[str]:
        """Rule of every row, spelled out."""
        return [explained(each["rule"]) for each in self.facets]


# Dot plots ---------------------------------------------------------------------------------------

#: Margin at both ends of an axis, as a part of its length.
_MARGIN = 0.04
#: Intervals that reach farther beyond the values, as a part of the value, do not widen the axis and are cut off.
_BEYOND = 0.35


def dot_plot(setting: Setting) -> dict[str, Any]:
    """Positions (percent of the axis) of everything in the dot plot of a setting, and the texts beside it."""
    measure, entries = setting.measure, setting.entries
    values = [value for each in entries for value in each.values]
    low, high = min(values), max(values)
    ends = [
        end
        for each in entries
        for end in each.interval or ()
        if low - _BEYOND * abs(low) <= end <= high + _BEYOND * abs(high)
    ]
    is_log = measure.lower and min(values) > 0
    place, ticks = _log_axis(values + ends) if is_log else _linear_axis(values + ends)
    base = setting.baseline
    return {
        "title": measure.name[0].upper() + measure.name[1:] + (f" ({measure.unit.strip()})" if measure.unit else ""),
        "setting": title(setting),
        "scale": "logarithmic axis" if is_log else "",
        "ticks": [{"at": _percent(place(tick)), "text": f"{tick:g}"} for tick in ticks],
        "reference": None if base is None else _percent(place(base.mean)),
        "baseline": None if base is None else base.label,
        "several": any(each.interval for each in entries),
        "rows": [
            {
                "name": each.label,
                "spelled": explained(each.rule),
                "facets": _facets(setting, each),
                "seeds": [_percent(place(value)) for value in each.values],
                "mean": _percent(place(each.mean)),
                "interval": each.interval and [_percent(place(end)) for end in each.interval],
                "cut": each.interval and [not 0 <= place(end) <= 1 for end in each.interval],
                "light": style(each.rule)[0],
                "dark": on_dark(style(each.rule)[0]),
                "text": f"{each.mean:.{measure.decimals}f}",
            }
            for each in entries
        ],
    }


def _percent(place: float) -> float:
    """Place on an axis in percent of its length; what is beyond an end stands at this end."""
    return round(100 * min(max(place, 0.0), 1.0), 2)


def _log_axis(values: Sequence[float]) -> tuple[Callable[[float], float], list[float]]:
    low, high = math.log10(min(values)), math.log10(max(values))
    spread = max(high - low, 0.3)
    low, spread = (low + high - spread) / 2 - _MARGIN * spread, (1 + 2 * _MARGIN) * spread
    exponents = range(math.floor(low), math.ceil(low + spread) + 1)
    steps: tuple[float, ...] = (
        (1.0,) if spread > 2.2 else (1.0, 2.0, 5.0) if spread > 0.7 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    )
    if spread < 0.4:
        steps = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0, 9.0)
    ticks = [step * 10.0**exponent for exponent in exponents for step in steps]
    return (
        lambda value: (math.log10(value) - low) / spread if value > 0 else -1.0,
        [tick for tick in ticks if low <= math.log10(tick) <= low + spread],
    )


def _linear_axis(values: Sequence[float]) -> tuple[Callable[[float], float], list[float]]:
    low, high = min(values), max(values)
    spread = (high - low) or max(abs(high), 1.0) / 10
    low, spread = (low + high - spread) / 2 - _MARGIN * spread, (1 + 2 * _MARGIN) * spread
    rough = 10 ** math.floor(math.log10(spread / 3))
    step = next(rough * each for each in (1, 2, 5, 10) if spread / (rough * each) <= 6)
    first = math.ceil(low / step)
    ticks = [round(number * step, 10) for number in range(first, math.floor((low + spread) / step) + 1)]
    return lambda value: (value - low) / spread, ticks


# Tables ------------------------------------------------------------------------------------------


def headline(results: Sequence[Result], groups: Sequence[Sequence[Result]]) -> Rows:
    """The headline table, with angles over hidden layers after training in the place of changes over all layers."""
    whole = table(results)
    kept = [number for number, head in enumerate(whole.header) if head not in ANGLE_HEADS]
    rows = [[row[number] for number in kept] for row in whole.rows]
    header = [whole.header[number] for number in kept]
    angles = [_angles(group) for group in groups]
    columns = [head for head in _ANGLES if any(each[head] != "-" for each in angles)]
    rows = [[*row[:-1], *(each[head] for head in columns), row[-1]] for row, each in zip(rows, angles, strict=True)]
    notes = [_MEAN + (f" {_ABOUT_ANGLES}" if columns else ""), *whole.notes[1:]]
    found = dataclasses.replace(
        whole, title=whole.title or "All configurations", header=[*header[:-1], *columns, "n"], rows=rows, notes=notes
    )
    found = _without_constant(found, ("n",), "n = {} in every row.")
    return Rows(found, [{**facets_of(group[0]), "seed": ""} for group in groups], found.header.index("rule"))


_ANGLES = ("gradient angle (°)", "worst layer (°)", "alignment angle (°)")
_MEAN = "Mean ± standard deviation over n seeds."
_ABOUT_ANGLES = (
    "Angles: after the last epoch, mean over the hidden layers; the output layer is left out, because every rule gives "
    "it the true gradient. Gradient angle: between the rule's gradient and the true one, 0° under backpropagation. "
    "Worst layer: the hidden layer with the largest gradient angle. Alignment angle: between W and B."
)


def _angles(group: Sequence[Result]) -> dict[str, str]:
    gradient, alignment = hidden_angles(group, "gradient_angles"), hidden_angles(group, "angles")
    worst = max(gradient.items(), key=lambda each: each[1], default=None)
    return dict(
        zip(
            _ANGLES,
            (
                _mean(gradient),
                "-" if worst is None else f"{worst[1]:.0f}" + (f", {worst[0]}" if worst[1] >= 0.5 else ""),
                _mean(alignment),
            ),
            strict=True,
        )
    )


def _mean(angles: Mapping[str, float]) -> str:
    return f"{sum(angles.values()) / len(angles):.0f}" if angles else "-"


def _without_constant(rows: Table, heads: Sequence[str], told: str, least: int = 2) -> Table:
    """Table without those of the columns `heads` that have one value, if it has `least` rows; a note says the value."""
    columns = {head: {row[number] for row in rows.rows} for number, head in enumerate(rows.header) if head in heads}
    dropped = {head: values.pop() for head, values in columns.items() if len(values) == 1 and len(rows.rows) >= least}
    kept = [number for number, head in enumerate(rows.header) if head not in dropped]
    notes = [told.format(", ".join(dropped.values()))] if dropped and told else []
    return dataclasses.replace(
        rows,
        header=[rows.header[number] for number in kept],
        rows=[[row[number] for number in kept] for row in rows.rows],
        notes=[*rows.notes, *notes],
    )


def differences(settings: Sequence[Setting]) -> Rows | None:
    """Table of each configuration's difference to backpropagation, seed by seed, or None if there is nothing in it."""
    rows, facets, notes, shown = [], [], [], []
    for setting in settings:
        base = setting.baseline
        if base is None:
            continue
        try:
            found = setting.differences(base)
        except ValueError:
            notes.append(f"Left out, because a seed occurs twice with different results: {title(setting)}.")
            continue
        for entry in setting.entries:
            if (each := found.get(entry.label)) is not None:
                facets.append({"seed": "", **_facets(setting, entry)})
                interval = "-"
                if each.interval is not None:
                    interval = f"[{', '.join(map(setting.measure.change, each.interval))}]"
                    interval += f" {_CLEAR}" if each.is_clear else ""
                change = setting.measure.change(each.mean)
                heads = {head: setting.names.get(head, "-") for head in SETTING}
                rows.append([*heads.values(), entry.label, setting.measure.name, change, interval, str(each.n)])
                shown.append(setting)
    if not rows:
        return None
    unit = "; errors in percentage points" if any(each.measure.points for each in shown) else ""
    note = (
        f"Each rule minus backpropagation, at the same seed{unit}. Interval: 95 %, Student's t over n pairs. "
        f"{_CLEAR} marks intervals that exclude 0: a difference that chance alone would rarely give."
    )
    header = [*SETTING, "rule", "figure", "difference", "95 % interval", "n"]
    whole = Table("", header, rows, [note, *notes])
    told_above = [*SETTING, "figure", "n", *([] if any(row[-2] != "-" for row in rows) else ["95 % interval"])]
    found_rows = _without_constant(whole, told_above, "", least=1)  # the heading has them
    common = [head for head in SETTING if head not in found_rows.header]
    told = [title(shown[0], common) if common else ""]
    measures = list(dict.fromkeys(each.measure.name for each in shown))
    what = f" in {measures[0]}" if len(measures) == 1 else ""
    if "n" not in found_rows.header:
        told.append(f"{rows[0][-1]} pairs" if rows[0][-1] != "1" else "one pair each, so no intervals")
    heading = ": ".join(filter(None, [f"Difference to backpropagation{what}", ", ".join(filter(None, told))]))
    found_rows = dataclasses.replace(found_rows, title=heading)
    return Rows(found_rows, facets, found_rows.header.index("rule"))
