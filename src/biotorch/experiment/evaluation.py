"""Measure a finished network again: on its own data, or on other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from biotorch import data
from biotorch.experiment.building import Which, check_input, load, own_config, read_checkpoint
from biotorch.experiment.config import Config
from biotorch.experiment.launching import launched
from biotorch.experiment.reading import ConfigError, validate
from biotorch.experiment.results import plain
from biotorch.training import evaluate
from biotorch.training.random_state import repeatable


def evaluate_run(
    run: Path,
    split: Literal["test", "validation"] = "test",
    which: Which = "best",
    overrides: Sequence[tuple[str, Any]] = (),
) -> dict[str, Any]:
    """Loss and errors of a run's network, with what they were measured on: plain values.

    Args:
        run: a run's folder, or one of its .pth files.
        split: which part of the data.
        which: the `best` model on validation, or the `latest`.
        overrides: changes of the run's configuration, such as ("data.dataset_path", "/elsewhere").

    Raises:
        FileNotFoundError, CheckpointError: as `load`.
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
                f"data.dataset {config.data.dataset!r} has {dataset.num_classes}"
            )
        known = content["data"].get("characters")
        if dataset.record.get("characters") != known:
            raise ConfigError(
                f"{run} was trained on the characters {known!r}, and those of data.dataset {config.data.dataset!r} "
                f"are {dataset.record.get('characters')!r}"
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
    """The configuration of a trained network with changes in some of its sections.

    Raises:
        ConfigError: a change is wrong, or in another section.
    """
    for key, _ in overrides:
        if key.split(".")[0] not in sections:
            raise ConfigError(f"{key}: only {' and '.join(sections)} can be changed for a network that is trained")
    places = {tuple(key.split(".")): f"override {key}={value}" for key, value in overrides}
    return validate(config.model_dump(mode="json"), source, dict(overrides), places).config
