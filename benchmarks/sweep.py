"""`sweep`: time of a sweep whose points run side by side, as a ratio to the points one after another.

Both are `biotorch run` of the same sweep over seeds, each in a process of its own; one after another, a point
has one thread. The limit is 1 / jobs. `automatic` is the command without --jobs, which chooses the number
itself.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.arguments import add_rounds, count
from benchmarks.commands import configuration, finished_run, random_images
from benchmarks.measuring import interleaved, ratio
from benchmarks.networks import NETWORKS
from benchmarks.records import Record
from biotorch import rules
from biotorch.rules.registry import own_name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command line."""
    parser.add_argument("--network", choices=["le_net_mnist", "le_net_cifar", "resnet20"], default="le_net_mnist")
    parser.add_argument("--rule", type=own_name, choices=rules.available(), default="fa", metavar="RULE")
    parser.add_argument("--points", type=count, default=6, help="of the sweep; default: 6")
    parser.add_argument("--jobs", type=count, default=os.cpu_count(), help="side by side; default: one per core")
    parser.add_argument("--images", type=count, default=20_000, help="training images in an epoch")
    parser.add_argument("--epochs", type=count, default=3)
    add_rounds(parser, 3)


def measure(arguments: argparse.Namespace) -> Iterator[Record]:
    """A record of the sweep with --jobs, and one of the sweep without."""
    shape = NETWORKS[arguments.network].shape
    with tempfile.TemporaryDirectory(prefix="biotorch-benchmark-") as folder:
        images = random_images(Path(folder) / "images.npz", arguments.images, shape)
        tree = configuration(images, arguments.network, arguments.rule, arguments.epochs, 64)
        tree["sweep"] = {"experiment.seed": list(range(arguments.points))}

        def seconds(*words: str) -> float:
            with finished_run(tree, words) as (_, passed):
                return passed

        cases = {
            "one after another": lambda: seconds("--jobs", "1", "infrastructure.threads=1"),
            f"--jobs {arguments.jobs}": lambda: seconds("--jobs", str(arguments.jobs), "infrastructure.threads=1"),
            "automatic": seconds,
        }
        costs = interleaved(cases, arguments.rounds)
    alone = costs["one after another"]
    for name in list(cases)[1:]:
        yield Record.of(
            ratio(costs[name], alone),
            benchmark="sweep",
            network=arguments.network,
            rule=arguments.rule,
            threads=1,
            limit=1 / min(arguments.jobs, arguments.points),
            seconds=statistics.median(alone),
            settings={"points": arguments.points, "epochs": arguments.epochs, "side by side": name},
        )
