"""`memory`: peak memory of a training step under each rule, as a ratio to plain PyTorch's.

Each measurement is a process of its own: the largest resident memory of two training steps, less what the
process holds before it builds the network. Needs Linux (/proc/self).
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.arguments import add_networks, add_rounds, add_rules, add_threads, count
from benchmarks.measuring import interleaved, ratio
from benchmarks.networks import NETWORKS
from benchmarks.records import Record
from benchmarks.stepping import Stepper, Way


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command line."""
    add_networks(parser, ["resnet20"])
    add_rules(parser, ["fa", "dfa", "usf", "brsf", "frsf", "kp", "dkp", "shallow"])
    parser.add_argument("--precisions", nargs="+", choices=["32", "bf16"], default=["32"])
    parser.add_argument("--batch", type=count, default=512)
    add_threads(parser)
    add_rounds(parser, 3)


def measure(arguments: argparse.Namespace) -> Iterator[Record]:
    """A record for each network, precision and rule, whose `peak_memory_ratio` is the median over the rounds."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for network in arguments.networks:
            for precision in arguments.precisions:

                def case(rule: str | None, place: tuple[str, str] = (network, precision)) -> Callable[[], float]:
                    return lambda: pool.apply(peak, (*place, rule, arguments.batch, torch.get_num_threads()))

                cases = {rule: case(rule) for rule in (None, *arguments.rules)}
                costs = interleaved(cases, arguments.rounds)
                for rule in arguments.rules:
                    yield Record(
                        benchmark="memory",
                        network=network,
                        rule=rule,
                        precision=precision,
                        peak_memory_ratio=ratio(costs[rule], costs[None]).median,
                        settings={"batch": arguments.batch},
                    )


def peak(network: str, precision: str, rule: str | None, batch: int, threads: int) -> float:
    """Peak resident memory, in bytes, that training adds to this process."""
    torch.set_num_threads(threads)
    before = _resident("VmRSS")
    stepper = Stepper(NETWORKS[network], rule, Way(batch, precision))
    with contextlib.suppress(OSError):  # where the mark cannot be reset, it also covers the building of the network
        Path("/proc/self/clear_refs").write_text("5")
    for _ in range(2):
        stepper.step()
    return _resident("VmHWM") - before


def _resident(name: str) -> float:
    found = re.search(rf"^{name}:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * float(found[1])
