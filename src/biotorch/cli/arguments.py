"""Arguments that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXIT_CODES = """Exit codes: 0 done; 1 a defect of biotorch (please report it); 2 a mistake in what was asked for;
3 the training diverged; 4 the disk is full; 130 and 143 stopped by Ctrl-C and SIGTERM, with a checkpoint: the same
command continues; 141 the reader of its output has gone."""

Overrides = Annotated[
    list[str] | None, typer.Argument(help="Changes to it: key.path=value, for example data.dataset=mnist.")
]
ConfigFile = Annotated[Path, typer.Argument(help="A YAML configuration, such as configs/quickstart.yaml.")]
