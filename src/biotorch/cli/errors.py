"""What goes wrong, told to a user."""

from __future__ import annotations

import functools
import inspect
import signal
import traceback
import warnings
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer

from biotorch import data
from biotorch.experiment import BrokenPointsError, Interrupted
from biotorch.experiment.mistakes import MISTAKES
from biotorch.training import DivergenceError
from biotorch.training.infrastructure import is_first_process

_DEFECT, _MISTAKE, _DIVERGED = 1, 2, 3
_EXIT_CODES = {"defect": _DEFECT, "mistake": _MISTAKE, "diverged": _DIVERGED}

_Command = TypeVar("_Command", bound=Callable[..., None])

_Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", show_default=False)]


def plain_errors(command: _Command) -> _Command:
    """A user's mistake ends with a message and an exit code, never with a traceback; adds `--debug`."""

    @functools.wraps(command)
    def guarded(*args: Any, debug: bool = False, **kwargs: Any) -> None:
        with warnings.catch_warnings():
            warnings.showwarning = _warn_once()
            try:
                command(*args, **kwargs)
            except (*MISTAKES, DivergenceError) as error:
                if debug:
                    traceback.print_exc()
                if is_first_process() or isinstance(error, data.DataError):  # a file that this process alone has read
                    typer.echo(f"error: {error}", err=True)
                raise typer.Exit(_DIVERGED if isinstance(error, DivergenceError) else _MISTAKE) from error
            except BrokenPointsError as error:
                if debug:
                    typer.echo("\n".join(failure.traceback for failure in error.failures.values()), err=True)
                typer.echo(f"error: {error}", err=True)
                raise typer.Exit(min(_EXIT_CODES[failure.kind] for failure in error.failures.values())) from error
            except KeyboardInterrupt as error:
                stopped = error.number if isinstance(error, Interrupted) else signal.SIGINT
                if is_first_process():
                    typer.echo(f"\nstopped by {signal.Signals(stopped).name}: the same command continues", err=True)
                raise typer.Exit(128 + stopped) from None

    signature = inspect.signature(command, eval_str=True)
    debug = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_Debug)
    guarded.__signature__ = signature.replace(parameters=[*signature.parameters.values(), debug])  # type: ignore[attr-defined]
    return guarded  # type: ignore[return-value]


def _warn_once() -> Callable[..., None]:
    """A `warnings.showwarning` that prints each message as one line, and once."""
    shown: set[str] = set()

    def show(message: Warning | str, *where: Any, **kwargs: Any) -> None:
        if is_first_process() and str(message) not in shown:
            shown.add(str(message))
            typer.echo(f"warning: {message}", err=True)

    return show
