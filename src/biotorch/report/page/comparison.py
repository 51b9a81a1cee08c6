"""Comparison of rules in words and numbers: means with intervals, differences to a baseline, and a conclusion."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import pandas as pd

from biotorch.report.words import is_rival, spelled, transported
from biotorch.results import frames
from biotorch.results.collecting import Collection, Run
from biotorch.results.groups import at


@dataclasses.dataclass(frozen=True)
class Measure:
    """Figure by which rules are compared: its column in a frame, its name and units, decimals, and what is better."""

    column: str
    name: str
    unit: str = ""
    points: str = ""
    decimals: int = 2
    lower: bool = True

    @property
    def extreme(self) -> str:
        """Word for the best value."""
        return "lowest" if self.lower else "highest"

    def text(self, value: float) -> str:
        """Value with its unit."""
        return f"{value:.{self.decimals}f}{self.unit}"

    def change(self, value: float) -> str:
        """Signed difference; one that rounds to zero has no sign."""
        shown = f"{value:+.{self.decimals}f}"
        return shown[1:] if float(shown) == 0 else shown


#: In the order of preference.
_MEASURES = (
    Measure("test_error", "test error", " %", " percentage points"),
    Measure("test_r2", "test R²", decimals=3, lower=False),
    Measure("validation_error", "validation error", " %", " percentage points"),
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """Runs of one configuration in a setting: values by seed, their mean, and its 95 % interval (None for one seed)."""

    label: str
    rule: str
    values: list[float]
    mean: float
    interval: tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class Difference:
    """Mean difference of n pairs of runs with equal seeds, and its 95 % interval (None for one pair)."""

    mean: float
    interval: tuple[float, float] | None
    n: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes 0."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


@dataclasses.dataclass(frozen=True)
class Setting:
    """Runs that may be compared: of one data set, network, optimizer and number of epochs."""

    names: dict[str, str]
    measure: Measure
    entries: list[Entry]
    frame: pd.DataFrame

    @property
    def baseline(self) -> Entry | None:
        """Backpropagation; of several configurations of it the best."""
        return self.best([each for each in self.entries if each.rule == "backpropagation"])

    def best(self, entries: Sequence[Entry]) -> Entry | None:
        """Entry with the best mean, or None if there are no entries."""
        sign = 1 if self.measure.lower else -1
        return min(entries, key=lambda each: sign * each.mean, default=None)

    def differences(self, baseline: Entry) -> dict[str, Difference]:
        """Differences of the other entries to a baseline, by label; an entry without a common seed has none.

        Raises:
            ValueError: an entry has two values for one seed.
        """
        frame = self.frame.assign(rule=self.frame["label"])
        found = frames.paired(frame, baseline=baseline.label, value=self.measure.column)
        return {
            str(each["rule"]): Difference(
                each["difference"], (each["low"], each["high"]) if each["n"] > 1 else None, int(each["n"])
            )
            for each in found.to_dict("records")
        }


#: Keys of the configuration in which the runs of a setting agree, with their heads.
SETTING = {
    "data set": "data.dataset",
    "target": "data.target",
    "network": "model.architecture",
    "optimizer": "training.optimizer.type",
    "epochs": "training.hyperparameters.epochs",
}


def settings_of(collection: Collection) -> list[Setting]:
    """Settings of a collection's runs, in the order of the runs; runs without a figure to compare are left out."""
    sorted_in: dict[tuple[str, ...], list[Run]] = {}
    for run in collection.runs:
        sorted_in.setdefault(tuple(_text(at(run.result, path)) for path in SETTING.values()), []).append(run)
    found = []
    for key, runs in sorted_in.items():
        frame = frames.of_collection(Collection(runs, [], []))
        measure = next((each for each in _MEASURES if frame[each.column].map(_is_known).any()), None)
        if measure is not None:
            kept = frame[frame[measure.column].map(_is_known)]
            entries = [_entry(str(label), rows, measure) for label, rows in kept.groupby("label", sort=False)]
            found.append(Setting(dict(zip(SETTING, key, strict=True)), measure, entries, kept))
    return found


def _is_known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _text(value: object) -> str:
    return "-" if value is None else str(value)


def _entry(label: str, rows: pd.DataFrame, measure: Measure) -> Entry:
    values, interval = [float(each) for each in rows[measure.column]], None
    mean = math.fsum(values) / len(values)
    if len(values) > 1:
        half = frames.quantile(len(values) - 1) * float(rows[measure.column].std()) / math.sqrt(len(values))
        interval = (mean - half, mean + half)
    return Entry(label, str(rows["rule"].iloc[0]), values, mean, interval)


def title(setting: Setting, heads: Sequence[str] = tuple(SETTING)) -> str:
    """Title of a setting, such as `le_net_mnist on digits, Adam, 15 epochs`, made of some of its names."""
    names = {head: setting.names[head] for head in heads if setting.names.get(head, "-") != "-"}
    network, data = names.pop("network", ""), names.pop("data set", "")
    if "epochs" in names:
        names["epochs"] += " epoch" if names["epochs"] == "1" else " epochs"
    return ", ".join(filter(None, [" on ".join(filter(None, [network, data])), *names.values()]))


def conclusion(setting: Setting) -> list[str]:
    """Sentences that say which rule is best, and how sure that is; the first one holds the result."""
    measure, base = setting.measure, setting.baseline
    rivals = [each for each in setting.entries if is_rival(each.rule)]
    best = setting.best(rivals)
    if len(setting.entries) == 1:
        [only] = setting.entries
        seeds = _seeds(len(only.values))
        return [
            f"{_full(only)} reaches a {measure.name} of {measure.text(only.mean)} ({seeds}).",
            "No other rule was run.",
        ]
    if best is None:
        first = setting.best(setting.entries)
        assert first is not None
        return [
            f"{_full(first)} has the {measure.extreme} {measure.name}: {measure.text(first.mean)}.",
            "Every rule here transports the weights, so there is no rule to judge.",
        ]
    if len(rivals) > 1:
        what = "rules" if len({each.rule for each in rivals}) == len(rivals) else "configurations"
        of = f"of the {len(rivals)} {what} that do not transport the weights"
        lead = f"{_full(best)} has the {measure.extreme} {measure.name} {of}: "
    else:
        lead = f"{_full(best)} has a {measure.name} of "
    lead += measure.text(best.mean)
    if base is None:
        missing = "Backpropagation was not run in this setting, so nothing shows what the rule costs."
        return [f"{lead}.", missing, *_beside(setting, best, rivals)]
    lead += f", against {measure.text(base.mean)} with {base.label}."
    return [lead, *_certainty(setting, best, base), *_beside(setting, best, rivals)]


def _certainty(setting: Setting, best: Entry, base: Entry) -> list[str]:
    try:
        found = setting.differences(base).get(best.label)
    except ValueError:
        return ["A seed occurs twice with different results, so the difference has no interval."]
    if found is None:
        return ["The two have no seed in common, so their difference has no interval."]
    measure = setting.measure
    change = f"{measure.change(found.mean)}{measure.points}"
    if found.interval is None:
        return [f"One seed cannot show whether the difference of {change} is more than chance."]
    low, high = (measure.change(end) for end in found.interval)
    told = f"The difference is {change} (95 % interval {low} to {high}, {_seeds(found.n)})"
    if not found.is_clear:
        return [f"{told}: the interval includes 0, so these runs do not show which of the two is better."]
    better = best if (found.mean < 0) == measure.lower else base
    return [f"{told}: the interval excludes 0, and {better.label} is better."]


def _beside(setting: Setting, best: Entry, rivals: Sequence[Entry]) -> list[str]:
    """Sentences for a reader, beside the best rule: ties, the best without signs, rules that learn too little."""
    measure, sentences = setting.measure, []
    try:
        found = setting.differences(best)
    except ValueError:
        found = {}
    ties = [
        each.label
        for each in rivals
        if each is not best and each.label in found and found[each.label].n > 1 and not found[each.label].is_clear
    ]
    if ties:
        sentences.append(
            f"These seeds do not tell {_listed(ties)} apart from {best.label}: the 95 % intervals of the differences "
            "include 0."
        )
    if transported(best.rule) == "signs":
        sentence = f"{best.label} does transport their signs"
        other = setting.best([each for each in rivals if transported(each.rule) == "nothing"])
        if other is not None:
            sentence += f"; of the rules that transport nothing, {_full(other)} has the {measure.extreme}: "
            sentence += measure.text(other.mean)
        sentences.append(f"{sentence}.")
    control = setting.best([each for each in setting.entries if each.rule == "shallow"])
    if control is not None:
        sign = 1 if measure.lower else -1
        failed = [each.label for each in rivals if sign * each.mean >= sign * control.mean]
        if failed:
            sentences.append(
                f"Not better than the control in which only the output layer learns ({measure.text(control.mean)}): "
                f"{_listed(failed)}."
            )
    return sentences


def _full(entry: Entry) -> str:
    """Label of an entry with its rule spelled out."""
    name = spelled(entry.rule)
    return entry.label if name == entry.rule else f"{entry.label} ({name})"


def _seeds(n: int) -> str:
    return "1 seed" if n == 1 else f"{n} seeds"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
