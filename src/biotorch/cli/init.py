"""The command `biotorch init`, which writes a configuration to begin with."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from biotorch.cli.errors import plain_errors
from biotorch.errors import BiotorchError, ConfigError, message_of

_T = TypeVar("_T")

#: Rules of a draft, if none are named.
_RULES = "backpropagation,fa"


@plain_errors
def init_command(
    context: typer.Context,
    file: Annotated[
        Path | None, typer.Argument(help="The file to write, such as mine.yaml; default: the name of the data set.")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--data", help="digits, mnist, folder:PATH, table:PATH ...: a value of data.dataset.", metavar="SET"
        ),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(help="A network of `biotorch models`, timm/NAME or hf/NAME; default: one that suits the data."),
    ] = None,
    rule: Annotated[
        str | None,
        typer.Option("--rules", help=f"Learning rules, separated by commas; default: {_RULES}.", show_default=False),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Column of a table to predict; several columns of numbers with commas.")
    ] = None,
    ignore: Annotated[
        str | None, typer.Option(help="Columns of a table that are no inputs, such as id, separated by commas.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs; default: a number for the kind of data.", show_default=False)
    ] = None,
) -> None:
    """Write a commented configuration that runs as it is, for a data set, a network and some rules.

    On a terminal, the command asks for what no option says. It checks the configuration, passes two examples of the
    data through the network, and never overwrites a file.

    \b
    biotorch init
    biotorch init mine.yaml --data digits --network mlp --rules backpropagation,fa,dfa
    biotorch init houses.yaml --data table:houses.csv --target price
    """
    if file is not None:
        _require_free(file)
    asks = on_terminal()
    if dataset is None and not asks:
        raise ConfigError("--data is missing: without a terminal to ask on, name the data set, such as --data digits")

    from biotorch.experiment import draft

    try:
        dataset = _answer("--data", _ASKED["data"], "digits", dataset, asks, _dataset)
        columns = draft.columns_of(dataset) if dataset.startswith("table:") else []
        targets: list[str] = []
        ignored: list[str] = []
        if columns or target is not None:
            if target is None and not asks:
                raise ConfigError(f"--target is missing: name the column to predict, one of {', '.join(columns)}")
            asked = f"Column to predict ({', '.join(columns)})"
            targets = _answer("--target", asked, None, target, asks, lambda text: _columns(text, columns))
            asked, none = "Columns that are no inputs, such as an id", "none"
            ignored = _answer("--ignore", asked, none, ignore, asks, lambda text: _ignored(text, columns))
        suits = draft.network_for(dataset)
        architecture = _answer("--network", _ASKED["network"], suits, network, asks, _network)
        rules = _answer("--rules", _ASKED["rules"], _RULES, rule, asks, _rules)
        default = f"{draft.name_for(dataset)}.yaml"
        file = _answer("FILE", "File to write", default, None if file is None else str(file), asks, _free_file)
    except typer.Abort:  # Ctrl-C, or the end of the input, at a question
        raise KeyboardInterrupt from None
    imports = context.find_root().params.get("imports") or ()
    drafted = draft.Draft(file.stem, dataset, architecture, rules, epochs, targets, ignored, imports)
    text = drafted.text(str(file))
    note = draft.check(text, str(file))
    try:
        with file.open("x") as opened:
            opened.write(text)
    except FileExistsError:
        _require_free(file)
    typer.echo(f"written {file}")
    if note:
        typer.echo(f"data    {note}")
    typer.echo(f"next    biotorch run {file}")


def on_terminal() -> bool:
    """Whether somebody is there to answer questions."""
    return sys.stdin.isatty() and sys.stdout.isatty()


_ASKED = {
    "data": "Data set (digits, mnist, cifar10, folder:PATH, table:PATH, text:PATH, PATH.npz ...)",
    "network": "Network (`biotorch models` lists them)",
    "rules": "Learning rules, separated by commas (`biotorch rules` lists them)",
}


def _answer(
    option: str, asked: str, default: str | None, given: str | None, asks: bool, read: Callable[[str], _T]
) -> _T:
    """Value of an option: the given one, or the answer to a question, or without a terminal the default.

    A wrong answer is asked for again. Raises ConfigError for a wrong option.
    """

    def again(text: str) -> _T:
        try:
            return read(text.strip())
        except (BiotorchError, OSError, ValueError) as error:
            raise typer.BadParameter(message_of(error)) from error

    if given is None and asks:
        answer: _T = typer.prompt(asked, default=default, value_proc=again)
        return answer
    text = given if given is not None else default
    assert text is not None
    try:
        return read(text)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from error


def _dataset(text: str) -> str:
    from biotorch.data import sources
    from biotorch.experiment import draft

    sources.find(text)
    if text.startswith("table:"):
        draft.columns_of(text)
    return text


def _columns(text: str, columns: list[str]) -> list[str]:
    from biotorch._names import unknown

    names = [text] if text in columns or not columns else [part.strip() for part in text.split(",")]
    for name in names:
        if columns and name not in columns:
            raise unknown("column", name, columns)
    return names


def _ignored(text: str, columns: list[str]) -> list[str]:
    return [] if text == "none" and "none" not in columns else _columns(text, columns)


def _network(text: str) -> str:
    from biotorch import models

    models.check_name(text)
    return text


def _rules(text: str) -> list[str]:
    from biotorch import rules

    return list(dict.fromkeys(rules.get(part.strip()).name for part in text.split(",")))


def _free_file(text: str) -> Path:
    path = Path(text).expanduser()
    _require_free(path)
    return path


def _require_free(file: Path) -> None:
    if file.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"a name that ends in .yaml is needed, not {file}")
    if file.exists():
        raise ConfigError(f"{file} exists already, and is not overwritten: choose another name, or delete it")
    if not file.parent.is_dir():
        raise ConfigError(f"there is no folder {file.parent} for {file.name}: make it, or choose another place")
