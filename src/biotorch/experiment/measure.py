"""Measurements of finished runs: evaluation on any data, and robustness."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from biotorch import _files, data
from biotorch.errors import ConfigError
from biotorch.experiment import results
from biotorch.experiment.config import Config
from biotorch.experiment.display import Display
from biotorch.experiment.folder import LockedFolder, RunFolder
from biotorch.experiment.network import Which, check_input, load, own_config, read_checkpoint
from biotorch.experiment.point import launched
from biotorch.experiment.reading import validate
from biotorch.experiment.results import plain
from biotorch.robustness import PGD, Normalised, Study, study
from biotorch.robustness.config import AttacksConfig
from biotorch.training import evaluate
from biotorch.training.randomness import repeatable


def evaluate_run(
    run: Path,
    split: Literal["test", "validation"] = "test",
    which: Which = "best",
    overrides: Sequence[tuple[str, Any]] = (),
) -> dict[str, Any]:
    """Evaluate a run's network: loss and errors as plain values, with a record of the data.

    Args:
        run: folder of a run, or one of its .pth files.
        split: part of the data to evaluate on.
        which: the `best` model on validation, or the `latest`.
        overrides: changes of the run's configuration, such as ("data.dataset_path", "/elsewhere").

    Raises:
        FileNotFoundError, CheckpointError: as in `load`.
        ConfigError: the network does not fit the data, or an override is wrong.
    """
    content = read_checkpoint(run, which)
    config = changed(own_config(content, str(run)), overrides, str(run), ("data", "infrastructure"))
    fabric = launched(config)
    with repeatable(config.experiment.seed, config.experiment.deterministic, config.infrastructure.threads):
        dataset = data.load(config.data, config.experiment.seed).to(fabric.device)
        model = load(run, which, fabric.device)
        if dataset.num_classes != content["num_classes"]:
            raise ConfigError(
                f"{run} was trained for {content['num_classes']} classes, "
                f"but data.dataset {config.data.dataset!r} has {dataset.num_classes}"
            )
        known = content["data"].get("characters")
        if dataset.record.get("characters") != known:
            raise ConfigError(
                f"{run} was trained on the characters {known!r}, but data.dataset {config.data.dataset!r} has the "
                f"characters {dataset.record.get('characters')!r}"
            )
        check_input(model, dataset.test, config)
        loss = config.model.loss_function.build().to(fabric.device)
        top_k = config.training.metrics.top_k if config.training else 1
        chosen = dataset.test if split == "test" else dataset.validation
        figures = evaluate(model, chosen, loss, top_k, config.data.evaluation_batch_size, fabric)
    accuracy = {"accuracy": 100 - figures["error"]}
    result: dict[str, Any] = plain(
        {"split": split, "examples": len(chosen), **accuracy, **figures, "data": dataset.record}
    )
    return result


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


#: Number of examples on the sheet.
_SHOWN = 8


def runs_in(path: Path) -> list[Path]:
    """Folders of trained runs: `path` itself if it is one, or the folders of a sweep's points.

    Raises:
        FileNotFoundError: `path` holds no trained network.
    """
    if RunFolder(path).best.is_file():
        return [path]
    found = sorted(each.parent for each in path.glob(f"*/{RunFolder(path).best.name}"))
    if not found:
        raise FileNotFoundError(f"{path} holds no trained network; the folder of a run or of a sweep is needed")
    return found


def attack_run(
    run: Path, overrides: Sequence[tuple[str, Any]] = (), display: Display | None = None
) -> tuple[dict[str, Any], Examples]:
    """Study the robustness of a run's best network, as the `attacks` section of its configuration says.

    Measurements are kept in `run/attacks`, one file each, and the next call reuses them. `study.json` and `study.md` in
    that folder hold the whole study.

    Args:
        run: folder of the run.
        overrides: changes of its configuration, in `attacks`, `data` and `infrastructure`.
        display: receives the progress.

    Returns:
        The content of study.json (`config`, `twin`, `environment`, `study`), and some adversarial examples.

    Raises:
        FileNotFoundError, CheckpointError: as in `load`.
        ConfigError: an override is wrong, or the data are not images.
        OtherRunError: `run/attacks` holds files of others.
        LockedError: another process attacks this run.
        LostFolderError: `run/attacks` was deleted or replaced during the study.
    """
    content = read_checkpoint(run)
    config = changed(own_config(content, str(run)), overrides, str(run), ("attacks", "data", "infrastructure"))
    if config.data.is_text:
        raise ConfigError(f"{run} was trained on text, but attacks need images")
    section = config.attacks or AttacksConfig()
    folder, fabric = LockedFolder(run / "attacks", {"study.json": b'"biotorch"'}), launched(config)
    with folder.locked():
        with repeatable(config.experiment.seed, config.experiment.deterministic, config.infrastructure.threads):
            dataset = data.load(config.data, config.experiment.seed).to(fabric.device)
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
            shown = _right_ones(model, images, labels)
            examples = Examples(model, images[shown], labels[shown], found, section)
        written: dict[str, Any] = results.plain(
            {
                "config": config.model_dump(mode="json"),
                "twin": None if path is None else str(path),
                "environment": results.environment(fabric, config.infrastructure.threads),
                "study": found.to_json(),
            }
        )
        folder.require_held()
        _files.write_text(folder.path / "study.json", json.dumps(written, indent=1, allow_nan=False) + "\n")
        told = "" if path is None else f"\nTransfer: the twin is {path}.\n"
        _files.write_text(folder.path / "study.md", f"{found}\n{told}")
    return written, examples


class Examples:
    """Images with adversarial examples (PGD along the true gradient at the epsilon of the verdict) and predictions.

    Attributes:
        images, adversarial: (n, C, H, W) in [0, 1].
        labels: (n,) int64.
        before, after: (n,) int64, the network's predictions without and with the attack.
        epsilon: radius of the attack.
        study: study that the examples belong to.
    """

    def __init__(self, model: Normalised, images: Tensor, labels: Tensor, study: Study, section: AttacksConfig) -> None:
        attack = PGD(model, study.judged_at, norm=section.norm, seed=section.seed)
        self.images, self.labels, self.epsilon, self.study = images, labels, study.judged_at, study
        self.adversarial = attack(images, labels)
        with torch.no_grad():
            model.eval()
            self.before, self.after = (model(each).argmax(1) for each in (images, self.adversarial))


def _right_ones(model: Normalised, images: Tensor, labels: Tensor) -> Tensor:
    """Indices of the first correctly classified images among the first 256, or of the first images without any."""
    with torch.no_grad():
        right = (model(images[:256]).argmax(1) == labels[:256]).nonzero()[:, 0]
    return (right if len(right) else torch.arange(len(images)))[:_SHOWN]


def pixels(dataset: data.Dataset, count: int | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """First `count` test images (n, C, H, W) in [0, 1], and their labels (n,); None takes all."""
    chosen = torch.arange(len(dataset.test) if count is None else min(count, len(dataset.test)))
    parts = list(dataset.test.batches(torch.split(chosen, 500)))
    images, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    mean, std = (torch.tensor(each, device=device).view(1, -1, 1, 1) for each in (dataset.mean, dataset.std))
    return (images * std + mean).clamp(0, 1).contiguous(), labels


def find_twin(run: Path, config: Config) -> Path | None:
    """Backpropagation run of the same sweep with otherwise the same settings as this run, or None.

    Its optimizer may differ, because each rule has its own learning rate.
    """
    for path in sorted(run.resolve().parent.glob(f"*/{RunFolder(run).best.name}")):
        if path.parent == run.resolve():
            continue
        other = _read(path.parent)
        if other is None or other.model.mode is None or other.model.mode.type != "backpropagation":
            continue
        if _kind(other) == _kind(config):
            return path.parent
    return None


def _read(run: Path) -> Config | None:
    """Configuration of a run, with the current defaults; None if it is no longer valid."""
    try:
        return Config.model_validate(RunFolder(run).read_config())
    except ValidationError:
        return None


def _kind(config: Config) -> Any:
    """Settings that a run and its twin must share."""
    tree = config.model_dump(mode="json")
    model = {key: value for key, value in tree["model"].items() if key != "mode"}
    own = ("optimizer", "lr_scheduler", "metrics")
    training = {key: value for key, value in (tree["training"] or {}).items() if key not in own}
    return model, tree["data"]["dataset"], tree["data"]["target_size"], tree["experiment"]["seed"], training
