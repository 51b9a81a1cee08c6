"""Results of a run, and of the study of its robustness, with all that is needed to judge and repeat them.

Both files hold a digest of their content, so that no figure is read from a file that has changed since it was written.
"""

from __future__ import annotations

import csv
import io
import math
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import biotorch
from biotorch import _files
from biotorch.errors import DamagedResultError, shortened

if TYPE_CHECKING:
    from lightning_fabric import Fabric

#: Result of a finished run, with the keys config, data, validation, test, history, state_hash, best_state_hash,
#: seconds, environment and digest.
Result = dict[str, Any]

#: Place of a robustness study in the folder of its run.
STUDY = Path("attacks") / "study.json"


def save(path: Path, result: Result) -> Result:
    """Write `results.csv` beside `path`, then `path` itself (JSON), and return what was written.

    Both are written atomically, and JSON comes last, so a folder that has it is a finished run.
    """
    result = plain(result)
    _files.write_text(path.with_suffix(".csv"), _csv(result))
    return _files.write_json(path, result)


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


_NUMBER = (int, float)
_CONFIG = {
    "experiment": {"name": str, "seed": int},
    "data": {"dataset": str, "validation": str},
    "model": {
        "architecture": str,
        "arguments": (..., dict),
        "mode": {"type": str, "options": dict, "layers": (..., None, {str: {"type": str, "options": dict}})},
        "train_only": (..., None, [str]),
    },
    "training": (None, {"optimizer": {"type": str, "lr": _NUMBER}, "hyperparameters": {"epochs": int}}),
}
_ENVIRONMENT = {"biotorch": str, "commit": (str, None), "torch": str, "device": str, "threads": (int, None)}

_NUMBERS: dict[Any, Any] = {str: (*_NUMBER, None)}
#: Figures of a split, of a regression or of a classification.
_FIGURES = (
    {**_NUMBERS, "loss": (*_NUMBER, None), "rmse": _NUMBER},
    {**_NUMBERS, "loss": (*_NUMBER, None), "error": _NUMBER},
)
_EPOCH = {
    "epoch": int,
    **dict.fromkeys(("train", "validation", "angles", "gradient_angles", "norm_ratios"), (..., None, _NUMBERS)),
}
_RECORD = {
    "digest": (..., None, str),
    "files": (..., {str: {"files": int, "bytes": int}}),
    "classes": (..., int),
    "input_shape": (..., [int]),
}
_SIZES = {"train": int, "validation": int, "test": int, "validation_from": str}
_PARTS = {
    "config": _CONFIG,
    "environment": _ENVIRONMENT,
    "data": (..., None, {**_RECORD, "train": ...}, {**_RECORD, **_SIZES}),
    "history": [_EPOCH],
    "seconds": _NUMBER,
    "state_hash": str,
}

#: Entries that every reader of a result relies on: types by key. A tuple holds alternatives, a list the form of all
#: entries, `str` as a key stands for all keys, and `...` for a key that is missing, as in older results.
_RESULT = (
    {**_PARTS, "test": _FIGURES, "validation": (None, *_FIGURES)},
    {**_PARTS, "test": (None, *_FIGURES), "validation": _FIGURES},
)

_ACCURACY = {"epsilon": _NUMBER, "robust_accuracy": _NUMBER, "interval": [_NUMBER]}
_ATTACK = {"attack": str, "label": str, "gradient": (str, None), "purpose": str, "settings": dict, "n": int}

_GRID = {str: {str: _NUMBER}}
_CORRUPTIONS = {
    **{"n": int, "sentence": str, "accuracy": _GRID, "ece": _GRID},
    **{"clean_accuracy": _NUMBER, "mean_accuracy": _NUMBER, "mce": (None, *_NUMBER)},
}

#: Entries that every reader of a robustness study relies on.
_STUDY = {
    "config": _CONFIG,
    "environment": _ENVIRONMENT,
    "study": {
        "verdict": str,
        "sentence": str,
        "judged_at": _NUMBER,
        "clean_accuracy": _NUMBER,
        "cosine": (None, *_NUMBER),
        "worst_case": [_ACCURACY],
        "checks": [{"name": str, "fired": bool, "sentence": str}],
        "measurements": [{**_ATTACK, **_ACCURACY, "clean_accuracy": _NUMBER}],
    },
    "corruptions": (..., _CORRUPTIONS),
    "calibration": (..., {"n": int, "accuracy": _NUMBER, "ece": _NUMBER, "bins": [[_NUMBER]], "sentence": str}),
}


def _wrong(value: Any, form: Any, place: str = "") -> Iterator[str]:
    """Places at which a value does not have the form that its readers rely on."""
    if isinstance(form, tuple):
        if all(list(_wrong(value, each)) for each in form):
            yield from _wrong(value, form[-1], place)
    elif isinstance(form, dict) and isinstance(value, dict):
        for key, below in form.items():
            for name in value if key is str else [key]:
                yield from _wrong(value.get(name, ...), below, f"{place}.{name}".lstrip("."))
    elif isinstance(form, list) and isinstance(value, list):
        for number, each in enumerate(value):
            yield from _wrong(each, form[0], f"{place}.{number}")
    elif value is not form and not (isinstance(form, type) and isinstance(value, form)):  # `form` may be None
        yield place


def load_results(folder: Path) -> Result | None:
    """Read the result of a finished run, or None. Raises DamagedResultError, which names the file and the cure.

    Examples:
        >>> results = biotorch.experiment.run(biotorch.experiment.read("study.yaml"))
        >>> result = biotorch.experiment.load_results(Path("runs/example/rule=fa,seed=0"))
        >>> result == results["rule=fa,seed=0"]
        True
    """
    again = "run this point again with --overwrite"
    return _load(folder / "results.json", _RESULT, "delete it to run this point again", again)


def load_study(folder: Path) -> dict[str, Any] | None:
    """Read the robustness study of a run, or None. Raises DamagedResultError, which names the file and the cure."""
    again = f"`biotorch attack {folder}` writes it again"
    return _load(folder / STUDY, _STUDY, again, again)


def _load(path: Path, form: Any, if_damaged: str, if_other: str) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = _files.read_json(path)
    except DamagedResultError as error:
        raise DamagedResultError(f"{error}; {if_damaged}") from error
    if not isinstance(content.get("config"), dict):
        raise DamagedResultError(f"{path} is damaged (it holds no configuration); {if_damaged}")
    if wrong := list(dict.fromkeys(_wrong(content, form))):
        known = content.get("environment")
        version = known.get("biotorch", "unknown") if isinstance(known, dict) else "unknown"
        raise DamagedResultError(
            f"{path} is damaged, or was written by another version of biotorch ({version}): it lacks "
            f"{shortened(', '.join(wrong))}, or has other values there; {if_other}"
        )
    return content


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
