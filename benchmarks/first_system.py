"""`first-system`: time per training image of `biotorch run`, as a ratio to the first system, PyPI
`biotorch==0.0.16`.

Whole epochs, loading and augmentation included: batch 64 on MNIST (resized to 32 x 32) for le_net_mnist, batch
128 on the first system's 45,000 training images of CIFAR-10, with random crop and flip, for the others; both
train on the same images. The first epochs, in which one or the other warms up or compiles, are not counted.
Each side is run at several settings, every run in a process of its own. A side's best setting is that of the
lowest median; there is one record of our best setting in the first system's arithmetic (fp32, eager), and one
of our best of all. On whole data sets this takes hours: --images 6400 takes fewer images, and with --near 0.8
only settings are run again which in the first round reached that part of the rate of the best of their side.
Beside another process, two threads on two cores can be forty times slower than one.

The first system has the package name of ours and so needs its own environment. Without --first, one is made in
~/.cache/biotorch/first-system, with the PyTorch and torchvision of this environment:

    python -m venv FOLDER
    FOLDER/bin/pip install torch==... torchvision==... pyarrow
    FOLDER/bin/pip install --no-deps biotorch==0.0.16
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks import commands
from benchmarks.arguments import add_networks, add_rounds, add_several_threads, count
from benchmarks.measuring import interleaved, ratio
from benchmarks.records import Record

#: Network -> its batch size and augmentation; the first system's are in first_environment.py.
NETWORKS: dict[str, tuple[int, dict[str, Any] | bool]] = {
    "le_net_mnist": (64, False),
    "le_net_cifar": (128, {"crop": 4, "flip": True}),
    "resnet20": (128, {"crop": 4, "flip": True}),
}


@dataclasses.dataclass(frozen=True)
class First:
    """A setting of the first system."""

    threads: int
    workers: int

    def __str__(self) -> str:
        return f"workers {self.workers}, threads {self.threads}"


@dataclasses.dataclass(frozen=True)
class Ours:
    """A setting of ours."""

    threads: int
    precision: str = "32"
    compile: bool = False
    processes: int = 1

    @property
    def plain(self) -> bool:
        """fp32, eager: the arithmetic of the first system."""
        return self.precision == "32" and not self.compile

    @property
    def launcher(self) -> list[str]:
        """What starts the processes: python, or torchrun."""
        if self.processes == 1:
            return [sys.executable]
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.processes}"]

    def __str__(self) -> str:
        precision = "fp32" if self.precision == "32" else "bf16"
        return f"{precision}{', compiled' * self.compile}, {self.processes} x {self.threads} threads"


Setting = First | Ours


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command line."""
    add_networks(parser, list(NETWORKS), list(NETWORKS))
    parser.add_argument("--rules", nargs="+", choices=["fa", "dfa"], default=["fa", "dfa"])
    parser.add_argument("--first", type=Path, metavar="PYTHON", help="of an environment that has the first system")
    parser.add_argument("--data", type=Path, help="holds MNIST/raw and cifar10-jpeg; default: $BIOTORCH_DATA")
    parser.add_argument("--images", type=count, help="of the training set, the first so many; default: all")
    add_rounds(parser, 2)
    parser.add_argument("--near", type=float, default=0.0, help="see above; default: all settings, every round")
    add_several_threads(parser)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="of the first system's loader")
    parser.add_argument("--bf16", action="store_true", help="run ours in bf16, too")
    parser.add_argument("--compiled", action="store_true", help="run ours compiled, too")
    parser.add_argument("--processes", type=int, nargs="+", default=[1], help="of our side, by torchrun")


def measure(arguments: argparse.Namespace) -> Iterator[Record]:
    """Two records for each network and rule: our best setting in fp32 and eager, and our best setting."""
    data = arguments.data or os.environ.get("BIOTORCH_DATA")
    for part in ("MNIST/raw", "cifar10-jpeg"):
        if data is None or not (Path(data) / part).is_dir():
            raise SystemExit(f"first-system: --data or the variable BIOTORCH_DATA must name a folder that holds {part}")
    settings: list[Setting] = [First(*pair) for pair in itertools.product(arguments.thread_numbers, arguments.workers)]
    precisions = ["32", "bf16-mixed"] if arguments.bf16 else ["32"]
    compiled = [False, True] if arguments.compiled else [False]
    kinds = itertools.product(arguments.thread_numbers, precisions, compiled, arguments.processes)
    settings += [Ours(*kind) for kind in kinds if kind[0] * kind[3] <= max(arguments.thread_numbers)]
    first = arguments.first or environment(Path.home() / ".cache" / "biotorch" / "first-system")
    with tempfile.TemporaryDirectory(prefix="biotorch-benchmark-") as folder:
        systems = Systems(first.absolute(), Path(str(data)).resolve(), arguments.images, Path(folder))
        for network in arguments.networks:
            systems.prepare(network)
            for rule in arguments.rules:
                yield from _compare(systems, network, rule, settings, arguments)


def _compare(
    systems: Systems, network: str, rule: str, settings: Sequence[Setting], arguments: argparse.Namespace
) -> Iterator[Record]:
    def case(setting: Setting) -> Callable[[], float]:
        return lambda: 1 / systems.rate(network, rule, setting)

    cases = {setting: case(setting) for setting in settings}
    costs = interleaved(cases, 1)
    kept = [setting for ranking in rankings(costs) for setting in near(ranking, costs, arguments.near)]
    rest = interleaved({setting: cases[setting] for setting in kept}, arguments.rounds - 1)
    costs = {setting: costs[setting] + rest[setting] for setting in rest}
    first, plain, ours = (ranking[0] for ranking in rankings(costs))
    for setting in dict.fromkeys((plain, ours)):
        assert isinstance(setting, Ours)
        yield Record.of(
            ratio(costs[setting], costs[first]),
            benchmark="first-system",
            network=network,
            rule=rule,
            precision="32" if setting.precision == "32" else "bf16",
            compiled=setting.compile,
            threads=setting.threads,
            settings={"processes": setting.processes, "images": arguments.images or "all"},
            figures={"first system": f"{1 / statistics.median(costs[first]):.0f}/s with {first}"},
        )


def rankings(costs: Mapping[Setting, Sequence[float]]) -> tuple[list[Setting], list[Setting], list[Setting]]:
    """The first system's settings, our plain ones and all of ours, each by the median, the fastest first."""
    ranked = sorted(costs, key=lambda setting: statistics.median(costs[setting]))
    ours = [setting for setting in ranked if isinstance(setting, Ours)]
    return (
        [setting for setting in ranked if isinstance(setting, First)],
        [setting for setting in ours if setting.plain],
        list[Setting](ours),
    )


def near(ranking: list[Setting], costs: Mapping[Setting, Sequence[float]], part: float) -> list[Setting]:
    """The settings that in the first round reached this part of the rate of the ranking's first."""
    return [setting for setting in ranking if costs[setting][0] * part <= costs[ranking[0]][0]]


# The two sides ---------------------------------------------------------------------------------


class Systems:
    """Both systems, ready to be run on the same images."""

    def __init__(self, first: Path, data: Path, images: int | None, folder: Path) -> None:
        self.first, self.data, self.images, self.folder = first, data, images, folder

    def rate(self, network: str, rule: str, setting: Setting) -> float:
        """Training images per second in the last epoch of a run."""
        if isinstance(setting, Ours):
            return self._ours(network, rule, setting)
        report = self._first_system(
            *("--network", network, "--rule", rule, "--epochs", "2"),
            *("--workers", str(setting.workers), "--threads", str(setting.threads)),
        )
        return float(report["images_per_second"][-1])

    def prepare(self, network: str) -> None:
        """Have the first system write the images it trains on."""
        self._first_system("--network", network, "--export", str(self._arrays(network)))

    def _arrays(self, network: str) -> Path:
        return self.folder / f"{network}.npz"

    def _first_system(self, *arguments: str) -> Any:
        script = Path(__file__).with_name("first_environment.py")
        limit = () if self.images is None else ("--images", str(self.images))
        # -I: nothing of this environment, of its variables and of the current folder is on the path.
        output = commands.output([str(self.first), "-I", str(script), "--data", str(self.data), *limit, *arguments])
        return json.loads(output.splitlines()[-1])

    def _ours(self, network: str, rule: str, setting: Ours) -> float:
        batch, augment = NETWORKS[network]
        epochs = 3 if setting.compile else 2
        tree = commands.configuration(
            self._arrays(network), network, rule, epochs, batch, target_size=32, augment=augment
        )
        tree["infrastructure"] = {
            "precision": setting.precision,
            "compile": setting.compile,
            "threads": setting.threads,
        }
        return commands.examples_per_second({**tree, "evaluation": False}, setting.launcher)


def environment(folder: Path) -> Path:
    """The Python of the first system's environment, which is made if it is not there."""
    python = folder / "bin" / "python"
    installed = "from importlib import metadata; metadata.version('biotorch')"
    if (
        not python.exists()
        or subprocess.run([python, "-I", "-c", installed], capture_output=True, check=False).returncode
    ):
        versions = [f"{name}=={metadata.version(name).partition('+')[0]}" for name in ("torch", "torchvision")]
        for command in (
            [sys.executable, "-m", "venv", str(folder)],
            [str(python), "-m", "pip", "install", "--quiet", *versions, "pyarrow"],
            [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "biotorch==0.0.16"],
        ):
            print(" ".join(command), file=sys.stderr)
            subprocess.run(command, check=True)
    return python
