"""Results on disk: everything needed to judge and repeat a run."""

from __future__ import annotations

import csv
import io
import json
import math
import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import biotorch
from biotorch import _files
from biotorch.errors import DamagedResultError

if TYPE_CHECKING:
    from lightning_fabric import Fabric


#: One finished run: config, data, validation, test, history, state_hash, seconds, environment.
Result = dict[str, Any]


def save(path: Path, result: Result) -> Result:
    """Write `results.csv` beside `path`, then `path` itself (JSON), and return what was written.

    The results come last and whole: a folder that has them is a finished run.
    """
    result = plain(result)
    _files.write_text(path.with_suffix(".csv"), _csv(result))
    _files.write_text(path, json.dumps(result, indent=1, allow_nan=False) + "\n")
    return result


def plain(value: Any) -> Any:
    """`value` for strict JSON: an undefined figure (the angle of a zero gradient) is null."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _csv(result: Result) -> str:
    """One line per split: plain numbers, with what they depend on."""
    config, environment = result["config"], result["environment"]
    rows = [
        {
            "name": config["experiment"]["name"],
            "dataset": config["data"]["dataset"],
            "architecture": config["model"]["architecture"],
            "rule": config["model"]["mode"]["type"],
            "train_only": " ".join(config["model"]["train_only"] or ()),
            "seed": config["experiment"]["seed"],
            "split": split,
            "accuracy": 100 - result[split]["error"],
            **result[split],
            "state_hash": result["state_hash"],
            "seconds": result["seconds"],
            **environment,
        }
        for split in ("validation", "test")
        if result[split] is not None
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def load_results(folder: Path) -> Result | None:
    """The result of a finished run, or None. Raises DamagedResultError, naming the file."""
    path = folder / "results.json"
    if not path.is_file():
        return None
    try:
        result: Result = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DamagedResultError(f"{path} is damaged ({error}): delete it to run this point again") from error
    if not isinstance(result, dict) or not isinstance(result.get("config"), dict):
        raise DamagedResultError(f"{path} is damaged (no result in it): delete it to run this point again")
    return result


def environment(fabric: Fabric, threads: int | None) -> dict[str, Any]:
    """What a figure depends on beside its configuration."""
    import torchvision

    device = fabric.device
    return {
        "biotorch": biotorch.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "precision": str(fabric.strategy.precision.precision),
        "threads": threads,
        "processes": fabric.world_size,
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of the source tree this runs from; None for an installed package."""
    source = Path(biotorch.__file__).parents[2]
    if not (source / ".git").exists():  # an environment may lie in a repository of somebody else's
        return None
    command = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
