"""The command line in this process, for its tests."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner, Result

from biotorch.cli.app import app

#: One short point.
SHORT = ("sweep={}", "training.hyperparameters={epochs: 1, batch_size: 128}", "infrastructure.threads=1")


def invoke(*arguments: object) -> Result:
    """Its exit code, output and exception."""
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(each) for each in arguments])


def into(folder: Path, *overrides: str, name: str = "short") -> tuple[str, ...]:
    """Overrides that put the run there."""
    return (f"experiment.output_dir={folder}", f"experiment.name={name}", *overrides)


def mistake(result: Result) -> str:
    """What a user's mistake ends with: one message on stderr, and nothing of Python."""
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    assert "Traceback" not in result.output
    assert result.stderr.startswith(("error: ", "Usage: ", "warning: "))
    return result.stderr
