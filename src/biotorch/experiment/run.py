"""The whole flow: config -> data -> model under a rule -> training with metrics -> test -> results."""

from __future__ import annotations

import contextlib
import random
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from biotorch import convert, data, models
from biotorch.experiment import results
from biotorch.experiment.config import Config, ConfigError, at_point, points
from biotorch.experiment.results import Result
from biotorch.training import evaluate, fit
from biotorch.training.loop import Record

#: Called after each epoch with the point's name and what the epoch measured.
OnEpoch = Callable[[str, Record], None]


def run(
    config: Config,
    overwrite: bool = False,
    on_epoch: OnEpoch = lambda name, record: None,
    on_result: Callable[[str, Result], None] = lambda name, result: None,
) -> dict[str, Result]:
    """Run every point of `config` and return the results by point name ("" without a sweep).

    A point whose folder holds results of the same configuration is not run again. Each point is on
    disk as soon as it is finished: an interruption loses the point it hits and no other.

    Raises:
        FileExistsError: a folder holds results of another configuration, and `overwrite` is False.
    """
    base = config.experiment.output_dir / config.experiment.name
    finished: dict[str, Result] = {}
    pending: dict[str, Config] = {}
    for name, changes in points(config).items():
        point = at_point(config, changes)
        result = None if overwrite else results.load_results(base / name)
        if result is None:
            pending[name] = point
        elif result["config"] != point.model_dump(mode="json"):
            raise FileExistsError(
                f"{base / name} holds the results of another configuration: choose another experiment.name, "
                "or overwrite them (--overwrite)"
            )
        else:
            finished[name] = result
    for name, result in finished.items():
        on_result(name, result)
    for name, point in pending.items():
        finished[name] = run_point(point, base / name, lambda record, name=name: on_epoch(name, record))  # type: ignore[misc]
        on_result(name, finished[name])
    return {name: finished[name] for name in points(config)}


def run_point(config: Config, folder: Path, on_epoch: Callable[[Record], None] = lambda record: None) -> Result:
    """Train and test one network and write its results into `folder`."""
    start = time.perf_counter()
    device = _device(config.infrastructure.gpus)
    seed = config.experiment.seed
    with _repeatable(seed, config.experiment.deterministic):
        dataset = data.load(config.data, seed).to(device)
        model = build_model(config, dataset.num_classes).to(device)
        _try(model, dataset.train, config)
        loss = nn.CrossEntropyLoss()
        history = fit(model, dataset, config.training, loss, seed, on_epoch)
        top_k = config.training.metrics.top_k
        result: Result = {
            "config": config.model_dump(mode="json"),
            "validation": evaluate(model, dataset.validation, loss, top_k),
            "test": evaluate(model, dataset.test, loss, top_k) if config.evaluation else None,
            "history": history,
            "seconds": time.perf_counter() - start,
            "environment": results.environment(device),
        }
    return results.save(folder, result)


def build_model(config: Config, num_classes: int) -> nn.Module:
    """The network of a configuration under its rule; W is drawn by the rule's `init` unless pretrained."""
    section = config.model
    try:
        model = models.build(section.architecture, num_classes, section.pretrained)
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error
    return convert(
        model,
        section.mode.type,
        copy_weights=section.pretrained,
        seed=config.experiment.seed,
        **section.mode.options,
    )


def _try(model: nn.Module, split: data.Split, config: Config) -> None:
    """One image through the network, so that a mismatch is told before anything else happens."""
    images, _ = next(data.Split(split.images[:1], split.labels[:1], split.mean, split.std).batches(1))
    model.eval()
    try:
        with torch.no_grad():
            model(images)
    except RuntimeError as error:
        shape = "x".join(map(str, images.shape[1:]))
        raise ConfigError(
            f"model.architecture {config.model.architecture!r} does not take the images of data.dataset "
            f"{config.data.dataset!r} ({shape}, see data.target_size): {error}"
        ) from error


def _device(gpus: int | list[int]) -> torch.device:
    index = gpus if isinstance(gpus, int) else gpus[0] if gpus else -1
    if index < 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        warnings.warn(f"infrastructure.gpus is {gpus}, but there is no CUDA device: using the CPU", stacklevel=2)
        return torch.device("cpu")
    return torch.device("cuda", index)


@contextlib.contextmanager
def _repeatable(seed: int, deterministic: bool) -> Iterator[None]:
    """Seeds for this run alone: the caller's random state and settings are put back."""
    python, numpy_state = random.getstate(), np.random.get_state()
    before = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.use_deterministic_algorithms(deterministic)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)
            random.setstate(python)
            np.random.set_state(numpy_state)
