"""Whose run is in a folder: continue it, forget it, or leave it alone."""

from __future__ import annotations

from typing import Any

import torch

from biotorch.errors import ConfigError, OtherRunError
from biotorch.experiment import results
from biotorch.experiment.config import Config, ModelConfig
from biotorch.experiment.folder import RunFolder
from biotorch.experiment.network import checkpoint_digest, model_of_checkpoint
from biotorch.experiment.results import Result

#: Keys that change where a run writes, or what it shows, but nothing of what it computes.
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
    """The result of this very run, or None where it is not finished.

    Raises:
        OtherRunError: the result is of another configuration.
        DamagedResultError: it cannot be read.
    """
    result = results.load_results(folder.path)
    if result is not None:
        _require_same(resolved(config, result["config"]), result["config"], folder)
        if result.get("started_from") != checkpoint_digest(config.model):
            raise OtherRunError(
                f"{folder.path} holds figures of what {config.model.checkpoint} was before: run it anew with "
                "--overwrite, or choose another experiment.name"
            )
    return result


def claim(config: Config, folder: RunFolder, overwrite: bool) -> Config:
    """The resolved configuration; an earlier run in the folder is to be continued, or with `overwrite` forgotten.

    Raises:
        OtherRunError: the earlier run is of another configuration, and `overwrite` is False.
        ConfigError: the run would start from a checkpoint in its own folder, and write over it.
    """
    start = config.model.checkpoint
    if start is not None and folder.path.resolve() in (start.resolve(), *start.resolve().parents):
        raise ConfigError(f"model.checkpoint: {start} lies in the folder of this run: choose another experiment.name")
    earlier = None if overwrite else folder.read_config()
    mine = resolved(config, earlier)
    if earlier is not None:
        _require_same(mine, earlier, folder)
    return mine


def resolved(config: Config, earlier: dict[str, Any] | None) -> Config:
    """With what the machine, the checkpoint or the start of the run decide; valid as a configuration file."""
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
            f"\n  {'.'.join(key)}: {theirs.get(key, 'absent')!r} there, {mine.get(key, 'absent')!r} here"
            for key in differing
        )
        raise OtherRunError(
            f"{folder.path} holds a run of another configuration: choose another experiment.name, "
            f"or run it anew with --overwrite.{shown}"
        )


def what_counts(config: dict[str, Any]) -> dict[tuple[str, ...], Any]:
    """The values of a configuration by key path, without those that change nothing of what a run computes.

    What is off or empty is left out, too: an older run does not know keys that came later.
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
