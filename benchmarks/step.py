"""`step`: time of a training step under each rule, as a ratio to plain PyTorch's step.

Measured beside it, in the same rounds: the limit of the rule (see limits.py), and with --fused the rule's step
with torch's fused SGD, as a ratio to plain PyTorch with the ordinary one. A turn is three steps, of which the
first is not timed. SGD with momentum and weight decay; images in channels_last.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator

import torch

from benchmarks.arguments import add_networks, add_rounds, add_rules, add_threads, count
from benchmarks.limits import Limit, limit_of
from benchmarks.measuring import interleaved, ratio
from benchmarks.networks import NETWORKS
from benchmarks.records import Record
from benchmarks.stepping import Stepper, Way


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command line."""
    add_networks(parser, ["le_net_cifar", "resnet20", "mlp"])
    add_rules(parser)
    parser.add_argument("--precisions", nargs="+", choices=["32", "bf16"], default=["32", "bf16"])
    parser.add_argument("--compiled", nargs="+", choices=["no", "yes"], default=["no"], help="default: no")
    parser.add_argument("--fused", action="store_true", help="measure each rule with torch's fused SGD, too")
    parser.add_argument("--batch", type=count, default=Way.batch)
    add_threads(parser)
    add_rounds(parser, 12)
    parser.add_argument("--warm-up", type=int, default=1, help="rounds that are not counted")


def measure(arguments: argparse.Namespace) -> Iterator[Record]:
    """A record for each network, precision, way of running, and rule."""
    for network in arguments.networks:
        for precision in arguments.precisions:
            for compiled in arguments.compiled:
                yield from _measure(network, precision, compiled == "yes", arguments)


def _measure(name: str, precision: str, compiled: bool, arguments: argparse.Namespace) -> Iterator[Record]:
    torch.compiler.reset()
    # Torch keeps 8 compiled versions of a function. A break at every layer makes more, which would run eagerly.
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 100_000
    network, way = NETWORKS[name], Way(arguments.batch, precision, compiled)
    cases: dict[str | Limit | tuple[str, str], Callable[[], float]] = {"plain": Stepper(network, None, way).turn}
    for rule in arguments.rules:
        cases[rule] = Stepper(network, rule, way).turn
        limit = limit_of(rule)
        if limit is not None and limit not in cases:
            cases[limit] = limit.stepper(network, rule, way).turn
        if arguments.fused:
            cases[rule, "fused"] = Stepper(network, rule, way, fused=True).turn
    interleaved(cases, arguments.warm_up)
    costs = interleaved(cases, arguments.rounds)
    plain = costs["plain"]
    for rule in arguments.rules:
        limit = limit_of(rule)
        yield Record.of(
            ratio(costs[rule], plain),
            benchmark="step",
            network=name,
            rule=rule,
            precision=precision,
            compiled=compiled,
            limit=1.0 if limit is None else ratio(costs[limit], plain).median,
            fused=ratio(costs[rule, "fused"], plain).median if arguments.fused else None,
            seconds=statistics.median(plain),
            settings={} if way.batch == Way.batch else {"batch": way.batch},
        )
