"""Comparison of a configuration with the run that is already in its folder: same run or another one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from biotorch import data
from biotorch.data import DataConfig
from biotorch.errors import ConfigError, MissingPackageError, OtherRunError
from biotorch.experiment import results
from biotorch.experiment.config import Config, ModelConfig
from biotorch.experiment.folder import RunFolder
from biotorch.experiment.network import checkpoint_digest, model_of_checkpoint
from biotorch.experiment.results import Result
from biotorch.training.figures import task_of

#: Keys that change where a run writes or what it displays, but none of its numbers.
_BESIDE_THE_POINT = (
    ("imports",),
    ("experiment", "name"),
    ("experiment", "output_dir"),
    ("logging",),
    ("attacks",),
    ("infrastructure", "checkpoint_seconds"),
    ("cluster",),
    ("data", "num_workers"),
    ("data", "check_contents"),
    ("data", "dataset_path"),
    ("training", "metrics", "display_iterations"),
)
#: Cure for data that have changed behind a run.
_ANEW = "Put the data back, choose another experiment.name, or run it anew with --overwrite."


def finished(
    config: Config, folder: RunFolder, describe: Callable[[DataConfig], dict[str, Any]] = data.describe
) -> Result | None:
    """Result of the run of `config` in the folder, or None if it is not finished; `describe` looks at the data.

    Raises:
        OtherRunError: the folder holds the result of another configuration, or on other data than are there today.
        DamagedResultError: the result cannot be read.
    """
    result = results.load_results(folder.path)
    if result is not None:
        mine = config.for_task(task_of(result["test"] or result["validation"]))
        _require_same(resolved(mine, result["config"]), result["config"], folder)
        if result.get("started_from") != checkpoint_digest(config.model):
            raise OtherRunError(
                f"{folder.path} holds results of a run that started from an older {config.model.checkpoint}, which "
                "has changed since; run it anew with --overwrite, or choose another experiment.name"
            )
        earlier = result.get("data") or {}
        try:
            present = describe(config.data) if "files" in earlier else {}
        except (FileNotFoundError, MissingPackageError):  # the data are not on this machine, so the result stands
            present = {}
        require_same_data(earlier, present, folder.path)
    return result


def data_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Record of the data in a checkpoint, completed where an older version kept its values elsewhere."""
    elsewhere = {"classes": checkpoint["num_classes"], "input_shape": checkpoint["input_shape"]}
    return {**elsewhere, **checkpoint["data"]}


def require_same_data(then: dict[str, Any], now: dict[str, Any], path: Path, cure: str = _ANEW) -> None:
    """Check that a run in `path`, whose data have the record `then`, and the data of the record `now` belong together.

    Raises OtherRunError, which says what differs. Records of older versions say less, and hardly differ.
    """
    if (found := data.difference(then, now)) is not None:
        raise OtherRunError(f"{path} holds a run on other data than those of data.dataset today ({found}). {cure}")


def claim(config: Config, folder: RunFolder, overwrite: bool) -> Config:
    """Resolve the configuration, and check that it may run in the folder.

    An earlier run of the same configuration in the folder will be continued, or discarded with `overwrite`.

    Raises:
        OtherRunError: the folder holds a run of another configuration, and `overwrite` is False.
        ConfigError: the run would start from a checkpoint in its own folder, and overwrite it.
    """
    start = config.model.checkpoint
    if start is not None and folder.path.resolve() in (start.resolve(), *start.resolve().parents):
        raise ConfigError(f"model.checkpoint: {start} lies in the folder of this run; choose another experiment.name")
    earlier = None if overwrite else folder.read_config()
    mine = resolved(config, earlier)
    if earlier is not None:
        _require_same(mine, earlier, folder)
    return mine


def resolved(config: Config, earlier: dict[str, Any] | None) -> Config:
    """Configuration with the values filled in that depend on machine, checkpoint or an earlier start of the run."""
    infrastructure, model = config.infrastructure, config.model
    if infrastructure.threads is None:
        started_with = (earlier or {}).get("infrastructure", {}).get("threads")
        infrastructure = infrastructure.model_copy(update={"threads": started_with or torch.get_num_threads()})
    if model.checkpoint is not None and (model.architecture is None or model.mode is None):
        known = ModelConfig.model_validate(earlier["model"]) if earlier else model_of_checkpoint(model.checkpoint)
        filled: dict[str, Any] = {} if model.mode is not None else {"mode": known.mode}
        if model.architecture is None:
            filled |= {"architecture": known.architecture, "arguments": known.arguments}
        model = model.model_copy(update=filled)
    return config.model_copy(update={"infrastructure": infrastructure, "model": model})


def _require_same(config: Config, earlier: dict[str, Any], folder: RunFolder) -> None:
    mine, theirs = what_counts(config.model_dump(mode="json")), what_counts(earlier)
    differing = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
    if differing:
        shown = "".join(
            f"\n  {'.'.join(key)}: {theirs.get(key, 'absent')!r} in the folder, {mine.get(key, 'absent')!r} asked for"
            for key in differing
        )
        raise OtherRunError(
            f"{folder.path} holds a run of another configuration; choose another experiment.name, "
            f"or run it anew with --overwrite.{shown}"
        )


def what_counts(config: dict[str, Any]) -> dict[tuple[str, ...], Any]:
    """Values of a configuration that change a run's numbers, by key path.

    Values that are off or empty are left out too, because older runs lack keys that were added later.
    """
    return {
        key: value
        for key, value in _flat(config).items()
        if not _beside_the_point(key) and not (value is None or value is False or value in ({}, []))
    }


def _flat(tree: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if not isinstance(tree, dict) or not tree:
        return {path: tree}
    return {key: value for name, below in tree.items() for key, value in _flat(below, (*path, name)).items()}


def _beside_the_point(key: tuple[str, ...]) -> bool:
    return any(key[: len(path)] == path for path in _BESIDE_THE_POINT)
