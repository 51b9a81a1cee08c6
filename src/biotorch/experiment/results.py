"""Results on disk: a folder per run, with everything needed to judge and repeat it."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch
import torchvision
import yaml

import biotorch

#: One finished run: config, test, validation, history, seconds, environment.
Result = dict[str, Any]


class DamagedResultError(ValueError):
    """A results file cannot be read."""


def save(folder: Path, result: Result) -> Result:
    """Write `config.yaml`, then `results.json`, and return what was written.

    The results come last and whole: a folder that has them is a finished run.
    """
    result = _plain(result)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "config.yaml", yaml.safe_dump(result["config"], sort_keys=False))
    write_atomically(folder / "results.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    return result


def _plain(value: Any) -> Any:
    """`value` for strict JSON: an undefined figure (the angle of a zero gradient) is null."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def load_results(folder: Path) -> Result | None:
    """The result of a finished run, or None. Raises DamagedResultError, naming the file."""
    path = folder / "results.json"
    if not path.is_file():
        return None
    try:
        result: Result = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise DamagedResultError(f"{path} is damaged ({error}): delete it to run this point again") from error
    return result


def write_atomically(path: Path, text: str) -> None:
    """All of `text` or nothing: a temporary file, synced, then renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def environment(device: torch.device) -> dict[str, Any]:
    """What a figure depends on beside its configuration."""
    return {
        "biotorch": biotorch.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of the source tree this runs from; None for an installed package."""
    source = Path(biotorch.__file__).parent
    command = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
