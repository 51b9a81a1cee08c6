"""Runs of `biotorch run` in processes of their own."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def configuration(
    dataset: Path, architecture: str, rule: str, epochs: int, batch: int, **data: Any
) -> dict[str, dict[str, Any]]:
    """Configuration of a training with SGD; `data` are further keys of its section `data`.

    It validates on the (small) test set, so that all training images are trained on.
    """
    return {
        "experiment": {"name": "run"},
        "data": {"dataset": str(dataset), "validation": "test", **data},
        "model": {"architecture": architecture, "mode": {"type": rule}},
        "training": {
            "hyperparameters": {"epochs": epochs, "batch_size": batch},
            "optimizer": {"type": "SGD", "lr": 0.001, "momentum": 0.9},
        },
        "infrastructure": {},
    }


def random_images(path: Path, count: int, shape: Sequence[int]) -> Path:
    """Write a data set of `count` random training images and 10 test images of shape (C, H, W), in ten classes."""
    channels, height, width = shape
    generator = np.random.default_rng(0)
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    for part, size in (("train", count), ("test", 10)):
        arrays[f"x_{part}"] = generator.integers(0, 256, (size, height, width, channels), dtype=np.uint8)
        arrays[f"y_{part}"] = np.arange(size) % 10
    np.savez(path, **arrays)  # type: ignore[arg-type] # numpy's stub takes them for an option
    return path


@contextlib.contextmanager
def finished_run(
    tree: Mapping[str, Any], words: Sequence[str] = (), launcher: Sequence[str] = (sys.executable,)
) -> Iterator[tuple[Path, float]]:
    """Run a configuration; the context's value is the folder of the study and the seconds that the command took.

    Raises:
        RuntimeError: the command failed; the message ends with what it printed.
    """
    with tempfile.TemporaryDirectory(prefix="biotorch-benchmark-") as name:
        folder = Path(name)
        tree = {**tree, "experiment": {**tree["experiment"], "output_dir": name}}
        (folder / "config.yaml").write_text(json.dumps(tree))  # JSON is YAML
        start = time.perf_counter()
        output([*launcher, "-m", "biotorch.cli", "run", str(folder / "config.yaml"), *words])
        yield folder / str(tree["experiment"]["name"]), time.perf_counter() - start


def examples_per_second(tree: Mapping[str, Any], launcher: Sequence[str] = (sys.executable,)) -> float:
    """Training examples per second in the last epoch of a run."""
    with finished_run(tree, launcher=launcher) as (folder, _):
        *_, last = (folder / "metrics.jsonl").read_text().splitlines()
    return float(json.loads(last)["examples_per_second"])


def output(command: Sequence[str]) -> str:
    """What a command prints.

    Raises:
        RuntimeError: it failed; the message ends with what it printed as errors.
    """
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{process.stderr[-2000:]}")
    return process.stdout
