"""Measurements of finished runs: evaluation on any data, and robustness."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from biotorch import _files, data
from biotorch._files import state_hash
from biotorch.errors import ConfigError
from biotorch.experiment import results
from biotorch.experiment.beside import beside_attacks
from biotorch.experiment.config import Config
from biotorch.experiment.display import Display
from biotorch.experiment.examples import Examples, Saved, examples, save_examples
from biotorch.experiment.folder import LockedFolder, RunFolder
from biotorch.experiment.identity import (
    BESIDE_THE_POINT,
    Which,
    data_of,
    own_config,
    read_checkpoint,
    require_same_data,
    what_counts,
)
from biotorch.experiment.network import check_input, load
from biotorch.experiment.point import launched, require_understood
from biotorch.experiment.reading import validate
from biotorch.experiment.results import plain
from biotorch.robustness import Normalised, Study, study
from biotorch.robustness.config import AttacksConfig
from biotorch.robustness.nearest import find_smallest
from biotorch.training import evaluate
from biotorch.training.randomness import repeatable


def evaluate_run(
    run: Path,
    split: Literal["test", "validation"] = "test",
    which: Which = "best",
    overrides: Sequence[tuple[str, Any]] = (),
) -> dict[str, Any]:
    """Evaluate a run's network: loss and errors as plain values, with a record of the data.

    The rows of another `data.test` are prepared as the network's own are. `measured_on` names this file, and
    `trained_on` says what differs if overrides choose other data than those of the training.

    Args:
        run: folder of a run, or one of its .pth files.
        split: part of the data to evaluate on.
        which: the `best` model on validation, or the `latest`.
        overrides: changes of the run's configuration, such as ("data.dataset_path", "/elsewhere").

    Raises:
        FileNotFoundError, CheckpointError: as in `load`.
        ConfigError: the network does not fit the data, or an override is wrong.
        OtherRunError: the data have changed since the network was trained, and no override names them.
    """
    content = read_checkpoint(run, which)
    own = own_config(content, str(run))
    config = changed(own, overrides, str(run), ("data", "infrastructure"))
    fabric = launched(config)
    with repeatable(config.experiment.seed, config.experiment.deterministic, config.infrastructure.threads):
        dataset = data.load(config.data, config.experiment.seed, own.data).to(fabric.device)
        differing = _other_data(content, dataset, run, config.data.test, overrides)
        model = load(run, which, fabric.device)
        require_understood(content, str(run), dataset)
        check_input(model, dataset.test, config)
        loss = config.model.loss(dataset.task).to(fabric.device)
        top_k = config.training.metrics.top_k if config.training else 1
        chosen = dataset.test if split == "test" else dataset.validation
        batch, scale = config.data.evaluation_batch_size, dataset.target_std
        figures = evaluate(model, chosen, loss, top_k, batch, fabric, scale=scale)
    accuracy = {"accuracy": 100 - figures["error"]} if "error" in figures else {}
    result: dict[str, Any] = plain(
        {"split": split, "examples": len(chosen), **accuracy, **figures, **differing, "data": dataset.record}
    )
    return result


#: Overrides that choose other data than those of the training.
_CHOICES = ("data", "data.dataset", "data.dataset_path")


def _other_data(
    content: dict[str, Any], dataset: data.Dataset, run: Path, test: str | None, overrides: Sequence[tuple[str, Any]]
) -> dict[str, str]:
    """Say which data are measured, if overrides choose others than those of the checkpoint `content`.

    Returns `trained_on`, what differs in the data of the training, and `measured_on`, the file `test` of other test
    rows, or what differs only in the test examples; no entry for what does not differ.

    Raises OtherRunError if the data differ although no override chooses others.
    """
    whole, chosen = (data_of(content), dataset.record), {key for key, _ in overrides}
    trained = data.without_test(whole[0]), data.without_test(whole[1])
    if chosen.isdisjoint(_CHOICES):
        cure = (
            "Put the data back, or name those to measure on (data.dataset=..., data.dataset_path=..., data.test=...)."
        )
        then, now = trained if "data.test" in chosen else whole
        require_same_data(then, now, run, cure)
    found = {}
    if (differs := data.difference(*whole)) is not None:
        if (before := data.difference(*trained)) is not None:
            found["trained_on"] = f"other data ({before})"
        if test is not None or before is None:
            found["measured_on"] = test or f"other data ({differs})"
    return found


def changed(config: Config, overrides: Sequence[tuple[str, Any]], source: str, sections: Sequence[str]) -> Config:
    """Copy of a trained network's configuration with changes in some of its sections.

    Raises:
        ConfigError: a change is invalid, or is not in one of `sections`.
    """
    for key, _ in overrides:
        if key.split(".")[0] not in sections:
            raise ConfigError(f"{key}: only {' and '.join(sections)} can be changed for a network that is trained")
    places = {tuple(key.split(".")): f"override {key}={value}" for key, value in overrides}
    return validate(config.model_dump(mode="json"), source, dict(overrides), places).config


def runs_in(path: Path) -> list[Path]:
    """Folders of trained runs: `path` itself if it is one, or the folders of a sweep's points.

    Raises:
        FileNotFoundError: `path` holds no trained network.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no folder {path}; name that of a run or of a sweep")
    if RunFolder(path).best.is_file() or RunFolder(path).results.is_file():  # what a run lacks is told by name
        return [path]
    found = sorted(each.parent for each in path.glob(f"*/{RunFolder(path).best.name}"))
    if not found:
        raise FileNotFoundError(f"{path} holds no trained network; the folder of a run or of a sweep is needed")
    return found


@dataclasses.dataclass(frozen=True)
class Attacked:
    """Results of a study of a run besides its files.

    Attributes:
        study: the study.
        examples: some adversarial examples to look at.
        saved: files of adversarial examples, if they were wanted.
    """

    study: Study
    examples: Examples
    saved: list[Saved]


def attack_run(
    run: Path,
    overrides: Sequence[tuple[str, Any]] = (),
    display: Display | None = None,
    save: bool = False,
) -> tuple[dict[str, Any], Attacked]:
    """Study the robustness of a run's best network, as the `attacks` section of its configuration says.

    Measurements are kept in `run/attacks`, one file each, and the next call reuses them. `study.json` and `study.md` in
    that folder hold the whole study.

    Args:
        run: folder of the run.
        overrides: changes of its configuration, in `attacks`, `data` and `infrastructure`.
        display: receives the progress.
        save: write the adversarial examples of the strongest attack at each epsilon, see `save_examples`.

    Returns:
        The content of study.json (`config`, `state_hash` of the network, record of the `data`, `trained_on` and
        `measured_on` if overrides have chosen other data than the network's, `twin` and its `twin_state_hash`,
        `environment`, `study`, `smallest`, `corruptions` and `calibration` if the section wants them, `digest`), and
        what the study has given besides.

    Raises:
        FileNotFoundError, CheckpointError: as in `load`.
        ConfigError: an override is wrong, or the data are not images.
        OtherRunError: the data have changed since the network was trained, and no override names them; or `run/attacks`
            holds files of others.
        LockedError: another process attacks this run.
        LostFolderError: `run/attacks` was deleted or replaced during the study.
    """
    content = read_checkpoint(run)
    config = changed(own_config(content, str(run)), overrides, str(run), ("attacks", "data", "infrastructure"))
    _require_images(run, config.data.is_image)
    section = config.attacks or AttacksConfig()
    config = config.model_copy(update={"attacks": section})
    place, fabric = RunFolder(run), launched(config)
    folder = LockedFolder(place.study.parent, {place.study.name: b'"biotorch"'})
    with folder.locked():
        with repeatable(config.experiment.seed, config.experiment.deterministic, config.infrastructure.threads):
            dataset = data.load(config.data, config.experiment.seed).to(fabric.device)
            _require_images(run, dataset.kind == "images" and dataset.task == "classification")
            differing = _other_data(content, dataset, run, config.data.test, overrides)
            model = Normalised(load(run, device=fabric.device), dataset.mean, dataset.std).to(fabric.device)
            path = section.twin or find_twin(run, config)
            twin = None if path is None else Normalised(load(path, device=fabric.device), dataset.mean, dataset.std)
            images, labels = pixels(dataset, section.wanted_images, fabric.device)
            if config.infrastructure.channels_last:
                images = images.to(memory_format=torch.channels_last)
            found = study(
                model,
                (images, labels),
                section.attacks,
                section.epsilons,
                section.preset,
                norm=section.norm,
                autoattack=section.autoattack,
                square_queries=section.square_queries,
                source=twin,
                seed=section.seed,
                batch_size=section.batch_size,
                folder=folder.path,
                display=display,
            )
            smallest = {}
            if section.smallest:
                distances = find_smallest(
                    model,
                    images,
                    labels,
                    norm=section.norm,
                    seed=section.seed,
                    batch_size=section.batch_size,
                    folder=folder.path,
                )
                smallest = {"smallest": [each.to_json() for each in distances]}
            digest = state_hash(content["model"])
            saved = save_examples(folder.path, model, twin, images, labels, found, digest) if save else []
            shown = examples(model, images, labels, found, section.norm, section.seed)
            beside = beside_attacks(section, model, (images, labels), twin, folder.path, display)
        written: dict[str, Any] = results.plain(
            {
                "config": config.model_dump(mode="json"),
                "state_hash": digest,
                "data": dataset.record,
                **differing,
                "twin": None if path is None else str(path),
                "twin_state_hash": None if path is None else state_hash(read_checkpoint(path)["model"]),
                "environment": results.environment(fabric, config.infrastructure.threads),
                "study": found.to_json(),
                **smallest,
                **{name: each.to_json() for name, each in beside.items()},
            }
        )
        folder.require_held()
        written = _files.write_json(place.study, written)
        told = "" if path is None else f"\nTransfer: the twin is {path}.\n"
        told += "".join(f"\nThe network was {key.replace('_', ' ')} {what}.\n" for key, what in differing.items())
        told += "".join(f"\n{each}\n" for each in beside.values())
        _files.write_text(place.study_text, f"{found}\n{told}")
    return written, Attacked(found, shown, saved)


def _require_images(run: Path, given: bool) -> None:
    if not given:
        raise ConfigError(f"{run} was not trained on images with classes, which attacks need")


def pixels(dataset: data.Dataset, count: int | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """First `count` test images (n, C, H, W) in [0, 1], and their labels (n,); None takes all."""
    chosen = torch.arange(len(dataset.test) if count is None else min(count, len(dataset.test)))
    parts = list(dataset.test.batches(torch.split(chosen, 500)))
    images, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    mean, std = (torch.tensor(each, device=device).view(1, -1, 1, 1) for each in (dataset.mean, dataset.std))
    return (images * std + mean).clamp(0, 1).contiguous(), labels


#: Settings that a run and its twin need not share: each rule has its own optimizer.
_NOT_OF_A_TWIN = (
    *BESIDE_THE_POINT,
    *(("model", "mode"), ("infrastructure",), ("evaluation",)),
    *(("training", key) for key in ("optimizer", "lr_scheduler", "metrics")),
)


def find_twin(run: Path, config: Config) -> Path | None:
    """Backpropagation run of the same sweep with otherwise the same settings as this run, or None.

    Its optimizer may differ, because each rule has its own learning rate.
    """
    wanted = what_counts(config.model_dump(mode="json"), _NOT_OF_A_TWIN)
    for path in sorted(run.resolve().parent.glob(f"*/{RunFolder(run).best.name}")):
        if path.parent == run.resolve():
            continue
        other = RunFolder(path.parent).read_config() or {}
        rule = what_counts(other).get(("model", "mode", "type"))
        if rule == "backpropagation" and what_counts(other, _NOT_OF_A_TWIN) == wanted:
            return path.parent
    return None
