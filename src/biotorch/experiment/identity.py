"""Identity of runs: which settings count, whether a folder holds the run asked for, and whose a checkpoint is."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError

from biotorch import data, rules
from biotorch._files import state_hash
from biotorch.data import DataConfig
from biotorch.errors import CheckpointError, ConfigError, MissingPackageError, OtherRunError
from biotorch.experiment import checkpoints, results
from biotorch.experiment.config import Config
from biotorch.experiment.folder import RunFolder
from biotorch.experiment.model import ModelConfig
from biotorch.experiment.results import Result
from biotorch.training.figures import task_of

#: Path of a key in a configuration.
Key = tuple[str, ...]

#: Keys that change where a run writes or what it displays, but none of its numbers.
BESIDE_THE_POINT: tuple[Key, ...] = (
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

#: Model of a run: `best` is the best on the validation set, `latest` is from the last checkpoint.
Which = Literal["best", "latest"]


# Settings ----------------------------------------------------------------------------------------


def what_counts(config: dict[str, Any], without: Sequence[Key] = BESIDE_THE_POINT) -> dict[Key, Any]:
    """Values that change a run's numbers, by key path: those of the configuration, and the defaults of all others.

    Args:
        config: configuration as plain values, of this version or an earlier one, which lacks some keys.
        without: keys, or sections, that do not count.
    """
    return {
        key: _plain(value)
        for key, value in _flat(Config.completed(config)).items()
        if not any(key[: len(path)] == path for path in without)
    }


def what_counts_in_a_study(config: dict[str, Any]) -> dict[Key, Any]:
    """Values that change the numbers of a robustness study: those of its network, and the settings of its attacks."""
    without = [*(path for path in BESIDE_THE_POINT if path != ("attacks",)), ("attacks", "twin")]
    return what_counts({**config, "attacks": config.get("attacks") or {}}, without)


def text_of(values: dict[Key, Any]) -> str:
    """Text of the values that count, which is equal for equal configurations only."""
    return json.dumps({json.dumps(key): value for key, value in values.items()}, sort_keys=True, default=str)


def differing(configs: Sequence[dict[str, Any]], counted: Sequence[dict[Key, Any]]) -> list[Key]:
    """Key paths at which configurations differ in what counts, as far as one of them sets the key itself.

    The arguments of another optimizer, for example, are left out, because its name says enough.

    Args:
        configs: the configurations.
        counted: for each, its values that count.
    """
    every = dict.fromkeys(key for each in counted for key in each)
    unequal = [key for key in every if len({json.dumps(each.get(key), default=str) for each in counted}) > 1]
    own = {key for config in configs for key, value in _flat(config).items() if value not in (None, {})}
    named = [key for key in unequal if any(key[:length] in own for length in range(1, len(key) + 1))]
    return named or unequal


def _flat(tree: Any, path: Key = ()) -> dict[Key, Any]:
    if not isinstance(tree, dict) or not tree:
        return {path: tree}
    return {key: value for name, below in tree.items() for key, value in _flat(below, (*path, str(name))).items()}


def _plain(value: Any) -> Any:
    """Value as JSON has it; 1 and 1.0 are one number."""
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def told_apart(
    mine: dict[str, Any], theirs: dict[str, Any], words: tuple[str, str], without: Sequence[Key]
) -> list[str]:
    """One phrase for each difference, such as "training.optimizer.lr: 0.1 in the folder, 0.2 asked for"."""
    counted = [what_counts(each, without) for each in (theirs, mine)]
    if text_of(counted[0]) == text_of(counted[1]):
        return []
    return [
        f"{'.'.join(key)}: "
        + ", ".join(f"{each.get(key, 'absent')!r} {word}" for each, word in zip(counted, words, strict=True))
        for key in differing([theirs, mine], counted)
    ]


# Folders -----------------------------------------------------------------------------------------


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


def claim(config: Config, earlier: dict[str, Any] | None, folder: RunFolder) -> None:
    """Check that a resolved configuration may run in the folder.

    Args:
        config: the configuration.
        earlier: configuration of the run that is in the folder and will be continued; None if there is none.
        folder: the folder.

    Raises:
        OtherRunError: the folder holds a run of another configuration.
        ConfigError: the run would start from a checkpoint in its own folder, and overwrite it.
    """
    start = config.model.checkpoint
    if start is not None and folder.path.resolve() in (start.resolve(), *start.resolve().parents):
        raise ConfigError(f"model.checkpoint: {start} lies in the folder of this run; choose another experiment.name")
    if earlier is not None:
        _require_same(config, earlier, folder)


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
    differences = told_apart(config.model_dump(mode="json"), earlier, ("in the folder", "asked for"), BESIDE_THE_POINT)
    if differences:
        raise OtherRunError(
            f"{folder.path} holds a run of another configuration; choose another experiment.name, "
            "or run it anew with --overwrite." + "".join(f"\n  {each}" for each in differences)
        )


# Checkpoints of a run ----------------------------------------------------------------------------


def read_checkpoint(source: Path, which: Which = "best") -> dict[str, Any]:
    """Read a .pth file, or the best or latest one in a run's folder.

    Raises:
        FileNotFoundError: the file does not exist.
        CheckpointError: the file is damaged, contains code, or lies in the folder of another run.
        DamagedResultError: the results in the folder cannot be read.
    """
    path = _checkpoint_file(source, which)
    content, folder = checkpoints.load(path), RunFolder(path.parent)
    hashes = {folder.best.name: "best_state_hash", folder.latest.name: "state_hash"}
    owner = folder.owner() if path.name in hashes else None
    if owner is None:
        return content
    result, config = owner
    require_same_run(content, path, config)
    known = result is not None and "best_state_hash" in result  # it lacks in results of earlier versions
    if result is not None and known and state_hash(content["model"]) != result[hashes[path.name]]:
        raise CheckpointError(
            f"{path} is not the network of the results beside it: its weights differ. Put the right file back, or run "
            "it anew with --overwrite"
        )
    return content


def require_same_run(content: dict[str, Any], path: Path, config: dict[str, Any]) -> None:
    """Raise CheckpointError unless the checkpoint `content`, read from `path`, is of a run of `config`."""
    cure = "put the right file back, or run it anew with --overwrite"
    if not is_own(content):
        raise CheckpointError(f"{path} was not written by the run in this folder; {cure}")
    if differences := told_apart(content["config"], config, ("in the folder", "in the checkpoint"), BESIDE_THE_POINT):
        raise CheckpointError(f"{path} is of another run ({'; '.join(differences)}); {cure}")


def checkpoint_digest(section: ModelConfig) -> str | None:
    """Digest of the checkpoint file that the network starts from, or None if it starts from scratch."""
    return None if section.checkpoint is None else checkpoints.digest(_checkpoint_file(section.checkpoint, "best"))


def _checkpoint_file(source: Path, which: Which) -> Path:
    if not source.is_dir():
        return source
    folder = RunFolder(source)
    path = folder.best if which == "best" else folder.latest
    if not path.is_file():
        points = sorted(found.parent.name for found in source.glob(f"*/{path.name}"))
        hint = f"choose one of its points: {', '.join(points)}" if points else "it is not a run, or it has not begun"
        if folder.results.is_file():
            hint = "the run is finished, but did not train, or its file is gone: put it back, or use --overwrite"
        raise FileNotFoundError(f"{source} holds no {path.name}; {hint}")
    return path


def own_config(content: dict[str, Any], source: str) -> Config:
    """Configuration stored in a checkpoint of this package. Raises CheckpointError if there is none."""
    if not is_own(content):
        raise CheckpointError(f"{source} was not written by a run and holds no configuration; name the architecture")
    checkpoints.require_format(content, source)
    try:
        return Config.model_validate(content["config"])
    except ValidationError as error:
        mode = content["config"].get("model", {}).get("mode", {})
        named = [mode.get("type"), *(rule.get("type") for rule in (mode.get("layers") or {}).values())]
        own = ", ".join(repr(name) for name in named if name is not None and not rules.is_known(name))
        cure = "name the module that registers it (biotorch --import my_rules ...), or import that module"
        why = f"uses a rule of your own, {own}; {cure}" if own else f"was written by another version: {error}"
        raise CheckpointError(f"{source} {why}") from error


def model_of_checkpoint(checkpoint: Path) -> ModelConfig:
    """Section `model` that a checkpoint was trained with. Raises CheckpointError if the file does not contain it."""
    return own_config(read_checkpoint(checkpoint), str(checkpoint)).model


def is_own(content: dict[str, Any]) -> bool:
    """Whether the content of a checkpoint was written by a run of this package."""
    return "format" in content and isinstance(content.get("config"), dict) and isinstance(content.get("model"), dict)
