"""Search for the learning rate of each setting of a study on validation data (appendix 6.1 of the paper)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from biotorch import _seeding
from biotorch._names import require
from biotorch.errors import BrokenPointsError, ConfigError
from biotorch.experiment.config import Config
from biotorch.experiment.folder import SEARCH
from biotorch.experiment.reading import Study
from biotorch.experiment.results import Result
from biotorch.training.figures import judged

_RATE, _SEED = "training.optimizer.lr", "experiment.seed"

#: Function that runs a study and returns its results; it raises BrokenPointsError if points have none.
Run = Callable[[Study], dict[str, Result]]


@dataclasses.dataclass(frozen=True)
class Setting:
    """Setting that gets one learning rate: points of a study that differ only by seed and rate.

    Attributes:
        name: common part of the points' names, without seed and rate.
        conditions: common values of the points, by axis of the sweep.
        config: configuration of the first point.
        figures: figures of the best epoch on the validation set by rate; empty if the training diverged.
    """

    name: str
    conditions: dict[str, Any]
    config: Config
    figures: dict[float, dict[str, float]] = dataclasses.field(default_factory=dict)

    @property
    def values(self) -> dict[float, float]:
        """Values by which the rates are judged, the lower the better; infinite if the training diverged."""
        return {rate: judged(figures) if figures else math.inf for rate, figures in self.figures.items()}

    @property
    def best(self) -> float | None:
        """Rate with the lowest value, the smallest one of a tie; None if all rates diverged."""
        finite = {rate: value for rate, value in self.values.items() if math.isfinite(value)}
        return min(sorted(finite), key=finite.__getitem__, default=None)

    @property
    def at_the_edge(self) -> bool:
        """Whether the best rate is the smallest or largest one tried, so that a better one may lie beyond."""
        return self.best is not None and len(self.values) > 1 and self.best in (min(self.values), max(self.values))


def settings(study: Study) -> list[Setting]:
    """Settings of a study.

    Raises:
        ConfigError: a point does not train, or uses the test set as its validation set.
    """
    found: dict[str, Setting] = {}
    for name, config in study.points.items():
        if config.training is None:
            raise ConfigError("training: the section is missing, so there is no rate to search for")
        if config.data.validation == "test":
            raise ConfigError(
                "data.validation: with `test` the rate would be chosen on the test set; hold out training data instead"
            )
        parts = [part for part in name.split(",") if part.split("=")[0] not in ("seed", "lr")]
        conditions = {axis: value for axis, value in study.cases[name].items() if axis not in (_RATE, _SEED)}
        setting = Setting(",".join(parts), conditions, config)
        found.setdefault(setting.name, setting)
    return list(found.values())


def grid(study: Study, rates: Sequence[float], run: Run) -> list[Setting]:
    """Measure every setting with every rate.

    Raises:
        ConfigError: as in `settings`, or the rates are not different numbers above 0.
        BrokenPointsError: a run broke for another reason than divergence.
    """
    if not rates or min(rates) <= 0 or len(set(rates)) < len(rates):
        raise ConfigError(f"rates: different numbers above 0 are needed, not {', '.join(map(str, rates))}")
    found = settings(study)
    _measure(study, [(setting, rate) for setting in found for rate in rates], run)
    return found


def by_optuna(study: Study, low: float, high: float, trials: int, seed: int, run: Run) -> list[Setting]:
    """Measure every setting with `trials` rates between `low` and `high` that optuna's TPE sampler proposes.

    The first rate is the configuration's own, if it lies in the range. The same seed proposes the same rates, so a
    search that was stopped can be continued.

    Raises:
        ConfigError: as in `settings`, or `low` and `high` are not a range above 0.
        BrokenPointsError: as in `grid`.
        MissingPackageError: optuna is not installed.
    """
    if not 0 < low < high:
        raise ConfigError(f"rates: the ends of a range above 0 are needed, not {low} and {high}")
    optuna = require("optuna", "search", "--trials")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found = settings(study)
    samplers = {
        each.name: optuna.create_study(
            sampler=optuna.samplers.TPESampler(seed=_seeding.derive(seed, each.name) % 2**32)
        )
        for each in found
    }
    for each in found:
        assert each.config.training is not None
        own = each.config.training.optimizer.lr
        if low <= own <= high:
            samplers[each.name].enqueue_trial({"lr": own})
    for _ in range(trials):
        asked = {each.name: samplers[each.name].ask() for each in found}
        rates = {name: _rounded(trial.suggest_float("lr", low, high, log=True)) for name, trial in asked.items()}
        _measure(study, [(each, rates[each.name]) for each in found], run)
        for each in found:
            samplers[each.name].tell(asked[each.name], each.values[rates[each.name]])
    return found


def _measure(study: Study, wanted: Sequence[tuple[Setting, float]], run: Run) -> None:
    """Run the wanted pairs of setting and rate, and store their validation figures in the settings."""
    points = {_name(setting, rate): _with_rate(setting.config, rate) for setting, rate in wanted}
    folder = study.folder / SEARCH
    try:
        results: Mapping[str, Result] = run(Study(folder, points))
    except BrokenPointsError as error:
        if any(failure.kind != "diverged" for failure in error.failures.values()):
            raise
        results = error.results
    for setting, rate in wanted:
        result = results.get(_name(setting, rate))
        setting.figures[rate] = {} if result is None else result["validation"]


def _name(setting: Setting, rate: float) -> str:
    return ",".join(part for part in (setting.name, f"lr={rate:g}") if part)


def _with_rate(config: Config, rate: float) -> Config:
    """Copy of the configuration with another rate, and without evaluation on the test set."""
    assert config.training is not None
    optimizer = config.training.optimizer.model_copy(update={"lr": rate})
    training = config.training.model_copy(update={"optimizer": optimizer})
    return config.model_copy(update={"training": training, "evaluation": False, "attacks": None})


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")


def as_refinements(found: Sequence[Setting]) -> Iterator[dict[str, Any]]:
    """Entries for the sweep's `when` that give every setting its best rate."""
    for setting in found:
        if setting.best is not None:
            yield {**setting.conditions, "set": {_RATE: setting.best}}
