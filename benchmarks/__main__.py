"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import ModuleType

import torch

from benchmarks import attacks, epoch, first_system, jobs, memory, readme, scale, step, strength, sweep
from benchmarks.records import Record, brief, save, table

_DESCRIPTION = """Speed and memory of biotorch, and the strength of its attacks, each beside a reference.

A round runs every case once, in an order drawn anew, and ratios are taken within the round. Printed is a Markdown
table with the median of the ratios and their quartiles; below 1, biotorch is faster than the reference. Run it on an
otherwise idle machine. Every subcommand has a --help of its own; README.md explains the columns."""

_COMMANDS: dict[str, ModuleType] = {
    "step": step,
    "epoch": epoch,
    "memory": memory,
    "scale": scale,
    "attacks": attacks,
    "strength": strength,
    "jobs": jobs,
    "sweep": sweep,
    "first-system": first_system,
}


def main(words: list[str] | None = None) -> None:
    """Run a subcommand, print its table, and write its records."""
    parser = _parser()
    arguments = parser.parse_args(words)
    if arguments.benchmark == "readme":
        readme.write(arguments, parser)
        return
    if getattr(arguments, "threads", None):
        torch.set_num_threads(arguments.threads)
    if arguments.json is not None and not arguments.json.parent.is_dir():
        parser.error(f"--json: {arguments.json.parent} is no folder; make it first")
    records: list[Record] = []
    try:
        for record in _COMMANDS[arguments.benchmark].measure(arguments):
            records.append(record)
            print(brief(record), file=sys.stderr, flush=True)
            if arguments.json is not None:
                save(arguments.json, records)  # after every record, because some measurements take hours
    except KeyboardInterrupt:
        sys.exit(130)
    except (ModuleNotFoundError, FileNotFoundError) as error:
        parser.error(str(error))
    finally:
        if records:
            print(f"{records[0].machine}\n\n{table(records)}")


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m benchmarks", description=_DESCRIPTION, formatter_class=raw)
    commands = parser.add_subparsers(dest="benchmark", required=True, metavar="COMMAND")
    for name, module in _COMMANDS.items():
        description = (module.__doc__ or "").partition(": ")[2]
        first = description.partition("\n\n")[0].replace("\n", " ")
        command = commands.add_parser(name, help=first, description=description, formatter_class=raw)
        module.add_arguments(command)
        command.add_argument("--json", type=Path, metavar="FILE", help="write the records to this file, too")
    readme.add_arguments(commands.add_parser("readme", help=readme.BRIEF, description=readme.BRIEF))
    return parser


if __name__ == "__main__":
    main()
