"""Results of a run on disk, with everything that is needed to judge and repeat it."""

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

#: Result of a finished run, with the keys config, data, validation, test, history, state_hash, seconds, environment.
Result = dict[str, Any]


def save(path: Path, result: Result) -> Result:
    """Write `results.csv` beside `path`, then `path` itself (JSON), and return what was written.

    Both are written atomically, and JSON comes last, so a folder that has it is a finished run.
    """
    result = plain(result)
    _files.write_text(path.with_suffix(".csv"), _csv(result))
    _files.write_text(path, json.dumps(result, indent=1, allow_nan=False) + "\n")
    return result


def plain(value: Any) -> Any:
    """Copy of `value` for strict JSON, where undefined numbers (such as the angle of a zero gradient) become null."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _csv(result: Result) -> str:
    """CSV text with one line per split: its figures, main settings and environment."""
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
            **({"accuracy": 100 - result[split]["error"]} if "error" in result[split] else {}),
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
    """Read the result of a finished run, or None. Raises DamagedResultError, which names the file."""
    path = folder / "results.json"
    if not path.is_file():
        return None
    try:
        result: Result = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DamagedResultError(f"{path} is damaged ({error}); delete it to run this point again") from error
    if not isinstance(result, dict) or not isinstance(result.get("config"), dict):
        raise DamagedResultError(f"{path} is damaged (it contains no result); delete it to run this point again")
    return result


def environment(fabric: Fabric, threads: int | None) -> dict[str, Any]:
    """Versions, device and other facts that a result depends on in addition to its configuration."""
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
    """Commit of the source tree that this code runs from, or None for an installed package."""
    source = Path(biotorch.__file__).parents[2]
    if not (source / ".git").exists():  # a virtual environment may lie inside another project's repository
        return None
    command = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
