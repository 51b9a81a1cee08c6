"""Training throughput of `biotorch run` as a ratio to that of the first system, PyPI `biotorch==0.0.16`.

    python benchmarks/throughput.py --data FOLDER                  # whole data sets: a matter of hours
    python benchmarks/throughput.py --data FOLDER --images 6400 --networks resnet20 --rules dfa
    python benchmarks/throughput.py --data FOLDER --first PYTHON   # of an environment that has the first system

Measured are training images per second of an epoch, loading and augmentation included: batch 64 on MNIST
(resized to 32 x 32) for le_net_mnist, batch 128 on the first system's 45,000 training images of CIFAR-10, with
random crop and flip, for the others; both train on the same images. The first epochs, in which one or the other
warms up or compiles, are not counted. Each side is run at several settings. A round runs them one after another,
every one in a process of its own and in an order drawn anew; ratios are taken within the round. A side's best
setting is that of the highest median. Printed: the median of the ratios and their range. Run it on an otherwise
idle machine: beside another process, two threads on two cores can be forty times slower than one. --near 0.8 saves
time: after the first round, only settings run that reached that part of the best of their side.

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
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

#: Network -> its batch size and augmentation; the first system's are in first_system.py.
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


class Benchmark:
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

    def prepare(self, network: str) -> str:
        """Have the first system write the images it trains on; returns its PyTorch's version."""
        return str(self._first_system("--network", network, "--export", str(self._arrays(network)))["torch"])

    def _arrays(self, network: str) -> Path:
        return self.folder / f"{network}.npz"

    def _first_system(self, *arguments: str) -> Any:
        script = Path(__file__).with_name("first_system.py")
        limit = () if self.images is None else ("--images", str(self.images))
        # -I: nothing of this environment, of its variables and of the current folder is on the path.
        output = _run([str(self.first), "-I", str(script), "--data", str(self.data), *limit, *arguments])
        return json.loads(output.splitlines()[-1])

    def _ours(self, network: str, rule: str, setting: Ours) -> float:
        batch, augment = NETWORKS[network]
        config: dict[str, Any] = {
            "data": {
                "dataset": str(self._arrays(network)),
                "target_size": 32,
                # The (small, untimed) test set: so that all training images are trained on.
                "validation": "test",
                "augment": augment,
            },
            "model": {"architecture": network, "mode": {"type": rule}},
            "training": {
                "hyperparameters": {"epochs": 3 if setting.compile else 2, "batch_size": batch},
                "optimizer": {"type": "SGD", "lr": 0.001, "momentum": 0.9},
            },
            "infrastructure": {
                "precision": setting.precision,
                "compile": setting.compile,
                "threads": setting.threads,
            },
            "evaluation": False,
        }
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            folder = Path(name)
            config["experiment"] = {"name": "run", "output_dir": name}
            (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
            _run([*setting.launcher, "-m", "biotorch.cli", "run", str(folder / "config.yaml")])
            *_, last = (folder / "run" / "metrics.jsonl").read_text().splitlines()
        return float(json.loads(last)["examples_per_second"])


def _run(command: list[str]) -> str:
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{process.stderr[-2000:]}")
    return process.stdout


def _fails(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode != 0


def environment(folder: Path) -> Path:
    """The Python of the first system's environment, which is made if it is not there."""
    python = folder / "bin" / "python"
    installed = "from importlib import metadata; metadata.version('biotorch')"
    if not python.exists() or _fails([str(python), "-I", "-c", installed]):
        versions = [f"{name}=={metadata.version(name).partition('+')[0]}" for name in ("torch", "torchvision")]
        for command in (
            [sys.executable, "-m", "venv", str(folder)],
            [str(python), "-m", "pip", "install", "--quiet", *versions, "pyarrow"],
            [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "biotorch==0.0.16"],
        ):
            print(" ".join(command), file=sys.stderr)
            subprocess.run(command, check=True)
    return python


def measure(benchmark: Benchmark, network: str, rule: str, settings: list[Setting], rounds: int, part: float) -> str:
    """A row of the table."""
    rates: dict[Setting, list[float]] = {setting: [] for setting in settings}
    for turn in range(rounds):
        for setting in random.sample(list(rates), len(rates)):
            rates[setting].append(benchmark.rate(network, rule, setting))
            side = "ours" if isinstance(setting, Ours) else "first"
            print(f"{network} {rule} {turn + 1}: {side}, {setting}: {rates[setting][-1]:.0f}/s", file=sys.stderr)
        if turn == 0:
            rates = {setting: rates[setting] for ranking in rankings(rates) for setting in near(ranking, rates, part)}
    first, plain, ours = (ranking[0] for ranking in rankings(rates))

    def ratio(setting: Setting) -> str:
        ratios = [own / other for own, other in zip(rates[setting], rates[first], strict=True)]
        return f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f} - {max(ratios):.2f}) | {setting}"

    return (
        f"| {network} | {rule} | {statistics.median(rates[first]):.0f}/s | {first} | {ratio(plain)} | {ratio(ours)} |"
    )


def rankings(rates: dict[Setting, list[float]]) -> tuple[list[Setting], list[Setting], list[Setting]]:
    """The first system's settings, our plain ones and all of ours, each by the median, the fastest first."""
    ranked = sorted(rates, key=lambda setting: -statistics.median(rates[setting]))
    ours = [setting for setting in ranked if isinstance(setting, Ours)]
    return (
        [setting for setting in ranked if isinstance(setting, First)],
        [setting for setting in ours if setting.plain],
        list[Setting](ours),
    )


def near(ranking: list[Setting], rates: dict[Setting, list[float]], part: float) -> list[Setting]:
    """The settings that in the first round reached this part of the rate of the ranking's first."""
    return [setting for setting in ranking if rates[setting][0] >= part * rates[ranking[0]][0]]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--rules", nargs="+", choices=["fa", "dfa"], default=["fa", "dfa"])
    parser.add_argument("--first", type=Path, metavar="PYTHON", help="of an environment that has the first system")
    parser.add_argument("--data", type=Path, help="holds MNIST/raw and cifar10-jpeg; default: $BIOTORCH_DATA")
    parser.add_argument("--images", type=int, help="of the training set, the first so many; default: all")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--near", type=float, default=0.0, help="see above; default: all settings, every round")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of either side")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="of the first system's loader")
    parser.add_argument("--precisions", nargs="+", choices=["32", "bf16-mixed"], default=["32", "bf16-mixed"])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="of our side, by torchrun")
    parser.add_argument("--eager", action="store_true", help="leave out compiled runs")
    arguments = parser.parse_args()
    if "32" not in arguments.precisions:
        parser.error("--precisions needs 32, the first system's")
    data = arguments.data or Path(os.environ.get("BIOTORCH_DATA") or parser.error("--data or BIOTORCH_DATA, please"))
    first = arguments.first or environment(Path.home() / ".cache" / "biotorch" / "first-system")
    settings: list[Setting] = [First(*pair) for pair in itertools.product(arguments.threads, arguments.workers)]
    compiled = [False] if arguments.eager else [False, True]
    kinds = itertools.product(arguments.threads, arguments.precisions, compiled, arguments.processes)
    settings += [Ours(*kind) for kind in kinds if kind[0] * kind[3] <= max(arguments.threads)]
    with tempfile.TemporaryDirectory(prefix="biotorch-throughput-") as folder:
        benchmark = Benchmark(first.absolute(), data.resolve(), arguments.images, Path(folder))
        torches = {benchmark.prepare(network) for network in arguments.networks}
        print(
            f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__} "
            f"(first system: {', '.join(torches)}), {arguments.images or 'all'} images, {arguments.rounds} rounds\n"
        )
        print("| network | rule | first system | its setting | ours, fp32 eager | setting | ours, best | setting |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
        for network, rule in itertools.product(arguments.networks, arguments.rules):
            print(measure(benchmark, network, rule, settings, arguments.rounds, arguments.near), flush=True)


if __name__ == "__main__":
    main()
