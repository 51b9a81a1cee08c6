"""Small configurations for the tests of reading them, and what they are refused with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from places import HELPERS, ROOT

from biotorch.experiment import ConfigError, read

FILES = HELPERS / "files"
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
PAPER = sorted((ROOT / "configs" / "paper").rglob("*.yaml"))

BASE = """\
experiment:
  name: base
data:
  dataset: digits
  target_size: 32
model:
  architecture: le_net_mnist
  mode:
    type: fa
training:
  hyperparameters:
    epochs: 1
    batch_size: 64
  optimizer:
    type: SGD
    lr: 0.1
"""


def write(folder: Path, text: str = BASE) -> Path:
    """A configuration file with that text."""
    path = folder / "base.yaml"
    path.write_text(text)
    return path


def message(path: Path, *overrides: str) -> str:
    """What `path` is refused with, without the folder of the file."""
    with pytest.raises(ConfigError) as caught:
        read(path, overrides)
    return str(caught.value).replace(f"{path.parent}/", "")


def refused(path: Path, *overrides: str) -> list[str]:
    """The problems in that message, one a line."""
    return message(path, *overrides).split("\n  ")[1:]


def flat(tree: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """The leaves of a tree by key path; an empty mapping is a leaf."""
    if not isinstance(tree, Mapping) or not tree:
        return {path: tree}
    return {key: value for name, below in tree.items() for key, value in flat(below, (*path, str(name))).items()}
