"""Errors of commands, shown as a message and an exit code, and the arguments that commands share."""

from __future__ import annotations

import functools
import inspect
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup

from biotorch.errors import BrokenPointsError, DataError, Interrupted, Kind, disk_is_full, kind_of, message_of

#: On one line, because help keeps the line breaks of a text.
EXIT_CODES = (
    "Exit codes: 0 success; 1 a defect of biotorch (please report it), or a process that died; 2 a mistake in the "
    "command, the configuration or the data; 3 the training diverged; 4 the disk is full; 130 and 143 stopped by "
    "Ctrl-C and SIGTERM, with a checkpoint, from which the same command continues; 141 the reader of the output "
    "has ended."
)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Changes to the configuration: key.path=value, for example data.dataset=mnist."),
]
ConfigFile = Annotated[
    Path,
    typer.Argument(
        help="A YAML file, or the name of a configuration that `biotorch configs` lists, such as quickstart."
    ),
]


_EXIT_CODES: dict[Kind, int] = {"defect": 1, "died": 1, "mistake": 2, "lost": 2, "diverged": 3, "disk": 4}
#: 128 + SIGPIPE, the exit code of a program whose output is no longer read.
_READER_GONE = 141

_Command = TypeVar("_Command", bound=Callable[..., None])

_Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", show_default=False)]


def plain_errors(command: _Command, continues: bool = False) -> _Command:
    """Make a command end with a message and an exit code, not a traceback, after a user's mistake; add `--debug`.

    Args:
        command: function with typer's annotations.
        continues: whether the command goes on where it was stopped, if it is given again.
    """

    @functools.wraps(command)
    def guarded(*args: Any, debug: bool = False, **kwargs: Any) -> None:
        with warnings.catch_warnings():
            warnings.showwarning = _warn_once()
            try:
                command(*args, **kwargs)
            except BrokenPointsError as error:
                if debug:
                    typer.echo("\n".join(failure.traceback for failure in error.failures.values()), err=True)
                typer.echo(f"error: {error}", err=True)
                raise typer.Exit(min(_EXIT_CODES[failure.kind] for failure in error.failures.values())) from error
            except KeyboardInterrupt as error:
                stopped = error.number if isinstance(error, Interrupted) else signal.SIGINT
                if is_first_process():
                    cure = ": the same command continues" if continues else ""
                    typer.echo(f"\nstopped by {signal.Signals(stopped).name}{cure}", err=True)
                raise typer.Exit(128 + stopped) from None
            except Exception as error:
                if kind_of(error) == "defect":
                    raise
                if debug:
                    traceback.print_exc()
                raise typer.Exit(_tell(error)) from error

    signature = inspect.signature(command, eval_str=True)
    debug = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_Debug)
    guarded.__signature__ = signature.replace(parameters=[*signature.parameters.values(), debug])  # type: ignore[attr-defined]
    return guarded  # type: ignore[return-value]


#: `plain_errors` of a command that continues.
resumable = functools.partial(plain_errors, continues=True)


class Commands(TyperGroup):
    """The group of commands, which ends silently if its output is no longer read (`biotorch models | head`)."""

    def main(self, *arguments: Any, **settings: Any) -> Any:
        try:
            return super().main(*arguments, **settings)
        except SystemExit as end:
            if isinstance(end.__context__, typer.Exit) and isinstance(end.__context__.__cause__, KeyboardInterrupt):
                raise KeyboardInterrupt from None  # typer makes a silent exit of what comes between commands
            if isinstance(end.__context__, BrokenPipeError):  # typer and rich exit with 1
                end.code = _READER_GONE
            raise
        except OSError as error:  # from `--help`, which is not a command
            if not disk_is_full(error):
                raise
            sys.exit(_tell(error))


def _tell(error: Exception) -> int:
    """Print the message of an exception, and return the exit code."""
    if isinstance(error, OSError) and disk_is_full(error):
        _give_up_output(error)
    if is_first_process() or isinstance(error, DataError):  # only this process may have read the file
        typer.echo(f"error: {message_of(error)}", err=True)
    return _EXIT_CODES[kind_of(error)]


def _give_up_output(error: OSError) -> None:
    """Name standard output in `error` if its disk is full, and drop its buffer, which the interpreter would write."""
    try:
        if error.filename is None:
            sys.stdout.write("\n")
        sys.stdout.flush()
    except OSError:
        error.filename = error.filename or "standard output"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _warn_once() -> Callable[..., None]:
    """Make a `warnings.showwarning` that prints each message once, as one line."""
    shown: set[str] = set()

    def show(message: Warning | str, *where: Any, **kwargs: Any) -> None:
        if is_first_process() and str(message) not in shown:
            shown.add(str(message))
            print(f"warning: {message}", file=sys.stderr)  # typer would write past live bars, which stay twice

    return show


def is_first_process() -> bool:
    """Whether this process writes and prints: the first of the processes that torchrun or Slurm has started."""
    if "lightning_fabric" in sys.modules:
        from lightning_fabric.utilities.rank_zero import rank_zero_only

        return getattr(rank_zero_only, "rank", 0) == 0
    ranks = map(os.environ.get, ("RANK", "LOCAL_RANK", "SLURM_PROCID"))  # in lightning's order
    return next((rank for rank in ranks if rank), "0") == "0"
