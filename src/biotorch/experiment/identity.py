"""Comparison of a configuration with the run that is already in its folder: same run or another one."""

from __future__ import annotations

from typing import Any

import torch

from biotorch.errors import ConfigError, OtherRunError
from biotorch.experiment import results
from biotorch.experiment.config import Config, ModelConfig
from biotorch.experiment.folder import RunFolder
from biotorch.experiment.network import checkpoint_digest, model_of_checkpoint
from biotorch.experiment.results import Result

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
    ("data", "dataset_path"),
    ("training", "metrics", "display_iterations"),
)


def finished(config: Config, folder: RunFolder) -> Result | None:
    """Result of the run of `config` in the folder, or None if it is not finished.

    Raises:
        OtherRunError: the folder holds the result of another configuration.
        DamagedResultError: the result cannot be read.
    """
    result = results.load_results(folder.path)
    if result is not None:
        _require_same(resolved(config, result["config"]), result["config"], folder)
        if result.get("started_from") != checkpoint_digest(config.model):
            raise OtherRunError(
                f"{folder.path} holds results of a run that started from an older {config.model.checkpoint}, which "
                "has changed since; run it anew with --overwrite, or choose another experiment.name"
            )
    return result


def claim(config: Config, folder: RunFolder) -> Config:
    """Resolve the configuration, and check that it may run in the folder.

    An earlier run of the same configuration in the folder will be continued, unless it is to be discarded.

    Raises:
        OtherRunError: the folder holds a run of another configuration that is not to be discarded.
        ConfigError: the run would start from a checkpoint in its own folder, and overwrite it.
    """
    start = config.model.checkpoint
    if start is not None and folder.path.resolve() in (start.resolve(), *start.resolve().parents):
        raise ConfigError(f"model.checkpoint: {start} lies in the folder of this run; choose another experiment.name")
    earlier = None if folder.discarded else folder.read_config()
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
