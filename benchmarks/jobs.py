"""`jobs`: how many threads a network can use: two one-thread processes against one process of two threads.

Networks of growing size train under one rule. A round measures the updates per second of one process with two
threads, and of two processes with one thread each that run at the same time. The ratio is the time per update
of the two processes to that of the one; below 1, two processes are faster. `biotorch run --jobs` rests on where
that ends.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import statistics
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

import torch

from benchmarks.arguments import add_networks, add_rounds, count
from benchmarks.measuring import interleaved, ratio
from benchmarks.networks import NETWORKS
from benchmarks.records import Record
from benchmarks.stepping import Stepper, Way
from biotorch import rules
from biotorch.rules.registry import own_name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command line."""
    add_networks(parser, ["le_net_mnist", "le_net_cifar", "resnet20", "mlp", "resnet56", "resnet18"])
    parser.add_argument("--rule", type=own_name, choices=rules.available(), default="fa", metavar="RULE")
    parser.add_argument("--batch", type=count, default=64)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    add_rounds(parser, 7)


def measure(arguments: argparse.Namespace) -> Iterator[Record]:
    """A record for each network."""
    with _workers(2) as pipes:
        for name in arguments.networks:

            def update(workers: int, name: str = name) -> float:
                for pipe in pipes[:workers]:
                    pipe.send((name, arguments.rule, arguments.batch, 2 // workers, arguments.seconds))
                return float(1 / sum(pipe.recv() for pipe in pipes[:workers]))

            cases = {workers: lambda workers=workers: update(workers) for workers in (1, 2)}
            costs = interleaved(cases, arguments.rounds)
            parameters = sum(each.numel() for each in NETWORKS[name].build().parameters())
            yield Record.of(
                ratio(costs[2], costs[1]),
                benchmark="jobs",
                network=name,
                rule=arguments.rule,
                threads=2,
                seconds=statistics.median(costs[1]),
                settings={"batch": arguments.batch, "parameters": parameters},
            )


@contextlib.contextmanager
def _workers(count: int) -> Iterator[list[Connection]]:
    """Processes that measure, each behind a pipe."""
    context = multiprocessing.get_context("spawn")
    pipes = []
    for _ in range(count):
        ours, theirs = context.Pipe()
        context.Process(target=_work, args=(theirs,), daemon=True).start()
        pipes.append(ours)
    yield pipes
    for pipe in pipes:
        pipe.send(None)


def _work(pipe: Connection) -> None:
    while (task := pipe.recv()) is not None:
        pipe.send(rate(*task))


def rate(name: str, rule: str, batch: int, threads: int, seconds: float) -> float:
    """Updates per second, after three that are not counted."""
    torch.set_num_threads(threads)
    stepper = Stepper(NETWORKS[name], rule, Way(batch))
    for _ in range(3):
        stepper.step()
    start, updates = time.perf_counter(), 0
    while not updates or time.perf_counter() - start < seconds:
        stepper.step()
        updates += 1
    return updates / (time.perf_counter() - start)
