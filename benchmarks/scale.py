"""`scale`: growth of a step's time with width, depth, classes, batch size and sequence length.

A network is measured at several sizes, under each rule and as plain PyTorch, all in the same rounds. Printed
for each size is the ratio to plain PyTorch at that size, and for the largest the exponent p of time ~ size^p,
by least squares on logarithms over the upper half of the sizes; `plain exponent` is that of plain PyTorch.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Callable, Iterator

from benchmarks.arguments import add_rounds, add_rules, add_threads, count
from benchmarks.measuring import exponent, interleaved, ratio
from benchmarks.networks import NETWORKS, Network
from benchmarks.records import Record
from benchmarks.stepping import Stepper, Way


@dataclasses.dataclass(frozen=True)
class Axis:
    """A quantity that grows: sizes, and the network and the batch size at each."""

    sizes: tuple[int, ...]
    network: Callable[[int], Network]
    batch: Callable[[int], int] = lambda size: 128


_MLP = NETWORKS["mlp"]

AXES = {
    "width": Axis((64, 128, 256, 512, 1024, 2048), lambda size: _MLP.changed(arguments={"width": size, "depth": 3})),
    "depth": Axis((2, 4, 8, 16, 32), lambda size: _MLP.changed(arguments={"width": 256, "depth": size})),
    "classes": Axis((10, 30, 100, 300, 1000), lambda size: NETWORKS["resnet20"].changed(classes=size)),
    "batch": Axis((16, 32, 64, 128, 256, 512), lambda size: NETWORKS["le_net_cifar"], lambda size: size),
    "length": Axis(
        (16, 32, 64, 128, 256), lambda size: NETWORKS["char_transformer"].changed(shape=(size,)), lambda size: 16
    ),
    "recurrence": Axis((8, 16, 32, 64, 128), lambda size: NETWORKS["lstm"].changed(shape=(size,)), lambda size: 32),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command line."""
    parser.add_argument(
        "--axes",
        nargs="+",
        choices=list(AXES),
        default=list(AXES),
        help="width and depth of a perceptron, classes of resnet20, batch size of le_net_cifar, sequence length of a "
        "transformer and (recurrence) of an LSTM",
        metavar="AXIS",
    )
    parser.add_argument("--sizes", type=count, nargs="+", metavar="N", help="of every axis; default: each its own")
    add_rules(parser, ["fa", "dfa", "kp", "dkp"])
    parser.add_argument("--precision", choices=["32", "bf16"], default="32")
    add_threads(parser)
    add_rounds(parser, 7)


def measure(arguments: argparse.Namespace) -> Iterator[Record]:
    """A record for each axis, rule and size."""
    for name in arguments.axes:
        axis = AXES[name]
        sizes = sorted(arguments.sizes or axis.sizes)
        cases = {
            (rule, size): Stepper(axis.network(size), rule, Way(axis.batch(size), arguments.precision)).turn
            for rule in (None, *arguments.rules)
            for size in sizes
        }
        interleaved(cases, 1)  # to warm up
        costs = interleaved(cases, arguments.rounds)

        def growth(rule: str | None, costs: object = costs, sizes: list[int] = sizes) -> float:
            return exponent(sizes, [statistics.median(costs[rule, size]) for size in sizes])  # type: ignore[index]

        for rule in arguments.rules:
            for size in sizes:
                fitted = {}
                if size == sizes[-1] and len(sizes) > 1:
                    fitted = {"exponent": growth(rule), "plain exponent": growth(None)}
                yield Record.of(
                    ratio(costs[rule, size], costs[None, size]),
                    benchmark="scale",
                    network=axis.network(size).name,
                    rule=rule,
                    precision=arguments.precision,
                    seconds=statistics.median(costs[None, size]),
                    settings={name: size},
                    figures=fitted,
                )
