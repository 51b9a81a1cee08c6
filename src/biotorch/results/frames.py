"""Results on disk as pandas frames: one row per run, mean and spread over seeds, paired differences.

import biotorch
runs = biotorch.results.load("runs/quickstart")
biotorch.results.summary(runs)
biotorch.results.paired(runs, baseline="backpropagation")
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from biotorch.experiment.identity import differing, what_counts
from biotorch.results.collecting import Collection, Run, collect
from biotorch.results.groups import by_configuration, label, mean_angle, method, published_error, without_copies
from biotorch.rules.registry import own_name, position

#: Columns that every frame has, in their order.
COLUMNS = (
    "label", "dataset", "architecture", "rule", "optimizer", "lr", "epochs", "seed", "test_error", "validation_error",
    "test_r2", "test_rmse", "perplexity", "paper_error", "weight_angle", "gradient_angle", "best_epoch", "seconds",
    "verdict", "robust_accuracy", "name", "state_hash", "checksum", "biotorch", "commit", "path",
)  # fmt: skip


def load(folders: Iterable[Path | str] | Path | str) -> pd.DataFrame:
    """Frame with one row per finished run in or below the folders.

    Columns are `COLUMNS`, and one for every other configuration key that differs between runs, named by its dotted
    path. Errors and accuracies are in percent, and `test_rmse` is in the unit of the target. Angles are in degrees, as
    means over layers after the last epoch: `weight_angle` is the alignment angle (between W and B), `gradient_angle`
    the gradient angle (between the rule's gradient and the true one). `robust_accuracy` is the accuracy under the
    strongest attack at the epsilon of the verdict. `checksum` is False for files of an earlier version, whose content
    cannot be verified. Runs that differ only by their seed have the same `label`. Copies of a run are left out.

    Returns:
        The frame; `frame.attrs["unfinished"]` lists the folders of unfinished runs.

    Raises:
        FileNotFoundError: a folder does not exist, or no folder contains a run.

    Warns:
        UserWarning: a file is damaged or written by an unreadable version, or runs occur twice.

    Examples:
        >>> results = biotorch.experiment.run(biotorch.experiment.read("study.yaml"))
        >>> runs = biotorch.results.load("runs/example")
        >>> runs[["rule", "seed", "epochs"]]
                      rule  seed  epochs
        0  backpropagation     0       2
        1  backpropagation     1       2
        2               fa     0       2
        3               fa     1       2
    """
    found = collect(folders)
    for problem in found.problems:
        warnings.warn(problem, stacklevel=2)
    frame = of_collection(found)
    if len(frame) < len(found.runs):
        warnings.warn(f"{len(found.runs) - len(frame)} runs are copies of others and are left out", stacklevel=2)
    return frame


def of_collection(found: Collection) -> pd.DataFrame:
    """Frame of runs that were already collected, see `load`."""
    results = without_copies(found.results)
    kept = {id(result) for result in results}
    runs = [run for run in found.runs if id(run.result) in kept]
    groups = by_configuration(results)
    labels = {id(result): label(group, groups) for group in groups for result in group}
    settings = [what_counts(run.result["config"]) for run in runs]
    varying = {
        ".".join(key): key
        for key in differing([run.result["config"] for run in runs], settings)
        if ".".join(key) not in _HAVE_COLUMNS
    }
    rows = [
        _row(run, labels[id(run.result)]) | {path: each.get(key) for path, key in varying.items()}
        for run, each in zip(runs, settings, strict=True)
    ]
    frame = pd.DataFrame(rows, columns=[*COLUMNS, *varying])
    frame.attrs["unfinished"] = [str(path) for path in found.unfinished]
    return frame


#: Configuration keys that `COLUMNS` contains under another name.
_HAVE_COLUMNS = {
    "data.dataset", "model.architecture", "model.mode.type", "training.optimizer.type", "training.optimizer.lr",
    "training.hyperparameters.epochs", "experiment.seed", "experiment.name",
}  # fmt: skip


def _row(run: Run, name: str) -> dict[str, Any]:
    result, study = run.result, (run.study or {}).get("study")
    config, environment = result["config"], result["environment"]
    training = config["training"] or {}
    test, validation = result["test"] or {}, result["validation"] or {}
    return {
        "label": name,
        "dataset": config["data"]["dataset"],
        "architecture": config["model"]["architecture"],
        "rule": method(result),
        "optimizer": training.get("optimizer", {}).get("type"),
        "lr": training.get("optimizer", {}).get("lr"),
        "epochs": training.get("hyperparameters", {}).get("epochs"),
        "seed": config["experiment"]["seed"],
        "test_error": test.get("error"),
        "validation_error": validation.get("error"),
        "test_r2": test.get("r2"),
        "test_rmse": test.get("rmse"),
        "perplexity": test.get("perplexity"),
        "paper_error": published_error(config),
        "weight_angle": mean_angle(result, "angles", -1),
        "gradient_angle": mean_angle(result, "gradient_angles", -1),
        "best_epoch": result.get("best_epoch"),
        "seconds": result["seconds"],
        "verdict": None if study is None else study["verdict"],
        "robust_accuracy": None if study is None else _robust(study),
        "name": config["experiment"]["name"],
        "state_hash": result["state_hash"],
        "checksum": "digest" in result,
        "biotorch": environment["biotorch"],
        "commit": environment["commit"],
        "path": str(run.path),
    }


def _robust(study: dict[str, Any]) -> float:
    at = min(study["worst_case"], key=lambda each: abs(each["epsilon"] - study["judged_at"]))
    return float(at["robust_accuracy"])


def summary(frame: pd.DataFrame, value: str | None = None) -> pd.DataFrame:
    """Mean, standard deviation (denominator n - 1) and n over the seeds of every configuration.

    Columns are `rule`, then `label` if a rule has several configurations, then whichever of data set, network,
    optimizer and epochs differ, then `mean`, `std`, `n`, and `paper` if the paper has an error for a row. What all rows
    have in common is in `attrs["common"]`, the name of the averaged column in `attrs["value"]`.

    Args:
        frame: result of `load`.
        value: numeric column to average; default: `test_error`, or `test_r2` if all runs are regressions.

    Raises:
        ValueError: the column does not exist.

    Examples:
        >>> results = biotorch.experiment.run(biotorch.experiment.read("study.yaml"))
        >>> biotorch.results.summary(biotorch.results.load("runs/example"))[["rule", "n"]]
                      rule  n
        0  backpropagation  2
        1               fa  2
    """
    value = _column(frame, value)
    groups = frame.groupby([*_SETTING, "rule", "label"], sort=False, dropna=False)
    found = groups.agg(
        mean=(value, "mean"), std=(value, "std"), n=(value, "count"), paper=("paper_error", "first")
    ).reset_index()
    return _readable(found, ["mean", "std", "n", *(["paper"] if found["paper"].notna().any() else [])], value)


def paired(frame: pd.DataFrame, baseline: str = "backpropagation", value: str | None = None) -> pd.DataFrame:
    """Difference of each rule to a baseline at the same seed, data set, network, optimizer and epochs.

    Learning rates may differ between rules. The interval is Student's t interval for the mean of the n differences.

    Args:
        frame: result of `load`.
        baseline: rule to compare with.
        value: numeric column to compare; default: `test_error`, or `test_r2` if all runs are regressions.

    Returns:
        Per rule: what differs of data set, network, optimizer and epochs, as in `summary`; `difference` (mean), `std`,
        `n`, and the 95 % interval `low`, `high` (NaN for one pair).

    Raises:
        ValueError: the column does not exist, the baseline has no run, or a rule has several runs for one seed.

    Examples:
        >>> results = biotorch.experiment.run(biotorch.experiment.read("study.yaml"))
        >>> biotorch.results.paired(biotorch.results.load("runs/example"))[["rule", "n"]]
          rule  n
        0   fa  2
    """
    value, baseline = _column(frame, value), own_name(baseline)
    if baseline not in set(frame["rule"]):
        raise ValueError(
            f"baseline: no run of {baseline!r}; there are {', '.join(sorted(set(frame['rule']), key=position))}"
        )
    twice = frame[frame.duplicated([*_SETTING, "rule", "seed"], keep=False)]
    if len(twice):
        names = ", ".join(sorted(set(twice["label"])))
        raise ValueError(f"several runs of one rule and seed ({names}); keep one label, frame[frame.label == ...]")
    first = frame[frame["rule"] == baseline][[*_SETTING, "seed", value]]
    others = frame[frame["rule"] != baseline]
    pairs = others.merge(first, on=[*_SETTING, "seed"], suffixes=("", "_baseline"))
    pairs["difference"] = pairs[value] - pairs[f"{value}_baseline"]
    found = pairs.groupby([*_SETTING, "rule"], sort=False, dropna=False)["difference"].agg(["mean", "std", "count"])
    found = found.rename(columns={"mean": "difference", "count": "n"}).reset_index()
    half = [
        quantile(int(n) - 1) * std / math.sqrt(n) if n > 1 else math.nan
        for n, std in zip(found["n"], found["std"], strict=True)
    ]
    found["low"], found["high"] = found["difference"] - half, found["difference"] + half
    return _readable(found, ["difference", "std", "n", "low", "high"], value)


#: Settings that comparisons keep apart, besides the label.
_SETTING = ["dataset", "architecture", "optimizer", "epochs"]


def _readable(found: pd.DataFrame, figures: list[str], value: str) -> pd.DataFrame:
    """Columns that say something, the rule first; settings that all rows share become `attrs["common"]`."""
    common = {name: found[name].iloc[0] for name in _SETTING if found[name].nunique(dropna=False) == 1}
    labelled = "label" in found and (found["label"] != found["rule"]).any()
    settings = [*(["label"] if labelled else []), *(name for name in _SETTING if name not in common)]
    chosen = found[["rule", *settings, *figures]]
    chosen.attrs = {"value": value, "common": common}
    return chosen


#: 97.5 % quantiles of Student's t for 1 to 30 degrees of freedom.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def quantile(freedom: int) -> float:
    """97.5 % quantile of Student's t; beyond 30 degrees of freedom by the Cornish-Fisher expansion."""
    z = 1.959964
    if freedom <= len(_T):
        return _T[freedom - 1]
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def _column(frame: pd.DataFrame, value: str | None) -> str:
    if value is None:
        return "test_r2" if frame["test_error"].isna().all() and frame["test_r2"].notna().any() else "test_error"
    if value not in frame.columns:
        raise ValueError(f"value: no column {value!r}; there are {', '.join(map(str, frame.columns))}")
    return value
