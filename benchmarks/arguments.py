"""Arguments that several subcommands take."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from benchmarks.networks import NETWORKS
from biotorch import rules
from biotorch.rules.registry import own_name


def count(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 on is needed, not {text!r}")
    return int(text)


def add_networks(
    parser: argparse.ArgumentParser, default: Sequence[str], choices: Sequence[str] = tuple(NETWORKS)
) -> None:
    """`--networks`."""
    told = f"of {', '.join(choices)}; default: {' '.join(default)}"
    parser.add_argument("--networks", nargs="+", choices=choices, default=default, metavar="NETWORK", help=told)


def add_rules(parser: argparse.ArgumentParser, default: Sequence[str] | None = None) -> None:
    """`--rules`; by default all."""
    told = f"default: {' '.join(default) if default else 'all'}"
    known = rules.available()
    parser.add_argument(
        "--rules", nargs="+", type=own_name, choices=known, default=default or known, metavar="RULE", help=told
    )


def add_threads(parser: argparse.ArgumentParser, default: int | None = None) -> None:
    """`--threads`."""
    told = f"CPU threads; default: {'as PyTorch chooses' if default is None else default}"
    parser.add_argument("--threads", type=count, default=default, help=told)


def add_several_threads(parser: argparse.ArgumentParser) -> None:
    """`--threads` of a benchmark that measures at several numbers of them."""
    told = "CPU threads; default: 1 2"
    place = "thread_numbers"
    parser.add_argument("--threads", type=count, nargs="+", default=[1, 2], metavar="N", dest=place, help=told)


def add_rounds(parser: argparse.ArgumentParser, default: int) -> None:
    """`--rounds`."""
    parser.add_argument("--rounds", type=count, default=default, help=f"default: {default}")
