"""The paper's command, `python benchmark.py --config X.yaml`: the same as `biotorch run X.yaml`."""

from __future__ import annotations

import re
import sys

from biotorch.cli.app import app


def main(arguments: list[str]) -> None:
    """Drop the flag in front of the file; everything else is `biotorch run`'s."""
    app(["run", *(re.sub("^--config(_file)?=", "", a) for a in arguments if a not in ("--config", "--config_file"))])


if __name__ == "__main__":
    main(sys.argv[1:])
