"""Short runs on the embedded digits, and what they leave on disk, for the tests of experiments."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from biotorch import models
from biotorch.experiment import Config, Display, Study, read, run
from biotorch.experiment.results import Result
from biotorch.training import Record

QUICK: dict[str, Any] = {
    "experiment": {"name": "quick", "seed": 3},
    "data": {"dataset": "digits", "target_size": 32},
    "model": {"architecture": "le_net_mnist", "mode": {"type": "fa"}},
    "training": {
        "hyperparameters": {"epochs": 1, "batch_size": 64},
        "optimizer": {"type": "SGD", "lr": 0.01, "momentum": 0.9},
    },
    "infrastructure": {"threads": 1},
}

#: Overrides that turn on everything that is tracked.
ALL_METRICS = (
    "training.metrics={weight_alignment: true, weight_ratio: true, gradient_alignment: true, top_k: 3}",
    "logging.tensorboard=true",
)

#: Overrides under which everything that a checkpoint has to hold matters; needs `register_small`.
EVERYTHING_MATTERS = (
    *ALL_METRICS,
    "model.architecture=small",
    "model.mode.type=brsf",
    "data.target_size=8",
    "data.augment={crop: 1, flip: true}",
    "training.hyperparameters={epochs: 5, batch_size: 100, accumulate: 2}",
    "training.lr_scheduler={type: CosineAnnealingLR, T_max: 30, interval: update}",
    "training.warmup_epochs=1.5",
    "training.clip_gradient_norm=1.0",
)

#: Examples of an attack that is over soon, along the rule's own feedback or W: "gradient" says which.
ADVERSARIAL = "training.adversarial={epsilon: 16/255, steps: 2, gradient: true}"

_TIMES = ("seconds", "examples_per_second")


def small(num_classes: int = 10) -> nn.Module:
    """Dropout, batch statistics, a convolution and two linear layers, for digits of 8x8 pixels."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 20), nn.ReLU(), nn.Dropout(0.3),
        nn.Linear(20, num_classes),
    )  # fmt: skip


def register_small() -> None:
    """Make `small` an architecture of this process."""
    models.registry.OWN["small"] = small


def quick_file(folder: Path) -> Path:
    """A configuration whose run is `folder / "quick"`."""
    tree = copy.deepcopy(QUICK)
    tree["experiment"]["output_dir"] = str(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "quick.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def quick(folder: Path, *overrides: str) -> Study:
    """The study of that configuration, with overrides."""
    return read(quick_file(folder), overrides)


def finish(folder: Path, *overrides: str, overwrite: bool = False) -> Result:
    """Run it to its end in `folder / "quick"`."""
    return run(quick(folder, *overrides), overwrite)[""]


def records(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without times."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [timeless(json.loads(line)) for line in lines]


def timeless(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in _TIMES}


def curves(folder: Path, times: bool = False) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard's scalars by tag: (step, value) in the order of writing, of all event files together."""
    events = EventAccumulator(str(folder / "logs"), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if times or tag.rpartition("/")[2] not in _TIMES
    }


def weights(path: Path) -> dict[str, Tensor]:
    """The network's state in a .pth file."""
    state: dict[str, Tensor] = torch.load(path, weights_only=True)["model"]
    return state


def stray(folder: Path) -> set[str]:
    """Names in a run's folder that a finished run has no use for."""
    return {path.name for path in folder.iterdir()} - {
        ".lock", ".overwrite.lock", "config.yaml", "results.json", "results.csv", "metrics.jsonl", "logs",
        "best_acc.txt", "model_best_acc.pth", "latest_model.pth",
    }  # fmt: skip


def left_behind(folder: Path) -> dict[str, Any]:
    """All that a finished run is compared by; nan stands as a word because it differs from itself."""
    result = json.loads((folder / "results.json").read_text())
    return {
        "hash": result["state_hash"],
        "test": result["test"],
        "validation": result["validation"],
        "best": {name: value.tolist() for name, value in weights(folder / "model_best_acc.pth").items()},
        "latest": {name: value.tolist() for name, value in weights(folder / "latest_model.pth").items()},
        "metrics": repr(records(folder)),
        "history": repr([timeless(record) for record in result["history"]]),
        "curves": repr(curves(folder)) if (folder / "logs").is_dir() else None,
    }


def files(folder: Path) -> dict[Path, bytes]:
    """Content of every file in or below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Calls(Display):
    """Display that keeps the names of the points that start, and the epochs."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.epochs: list[int] = []

    def start(self, name: str, config: Config) -> None:
        self.names.append(name)

    def epoch(self, record: Record, name: str | None = None) -> None:
        self.epochs.append(record["epoch"])
