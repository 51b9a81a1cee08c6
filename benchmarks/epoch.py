"""`epoch`: time of whole epochs of biotorch's trainer, as a ratio to a plain loop over the same tensors.

The loop trains the same network under the same rule on the same images in memory: it takes them by a
permutation, normalises (and, with augmentation, crops and flips) them with the same operations, and does
nothing else. So the ratio is what the trainer adds. With --command, whole `biotorch run`s are measured too,
each in a process of its own.

The last row is the share of an epoch of resnet56 (45,000 images) that the alignment metrics after it take.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.arguments import add_networks, add_rounds, add_rules, add_several_threads, count
from benchmarks.commands import configuration, examples_per_second, random_images
from benchmarks.measuring import interleaved, ratio
from benchmarks.networks import NETWORKS, loss
from benchmarks.records import Record
from benchmarks.stepping import Stepper, Way
from biotorch import data, metrics
from biotorch.data.splits import MemorySplit
from biotorch.experiment.config import Config
from biotorch.experiment.network import build_model, feedback_groups
from biotorch.experiment.point import launched
from biotorch.experiment.reading import validate
from biotorch.training import Observer, Trainer, TrainingState
from biotorch.training import Record as EpochRecord
from biotorch.training.randomness import repeatable

_BATCHES = {"le_net_mnist": 64, "le_net_cifar": 128, "resnet20": 128}
_METRICS_NETWORK, _METRICS_IMAGES = "resnet56", 45_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command line."""
    add_networks(parser, list(_BATCHES), list(_BATCHES))
    add_rules(parser, ["fa"])
    parser.add_argument("--augmentation", nargs="+", choices=["no", "yes"], default=["no", "yes"])
    parser.add_argument("--images", type=count, default=6400, help="training images in an epoch")
    add_several_threads(parser)
    add_rounds(parser, 7)
    parser.add_argument("--command", action="store_true", help="measure `biotorch run`, too")
    parser.add_argument("--no-metrics", action="store_true", help="leave out the share of the alignment metrics")


def measure(arguments: argparse.Namespace) -> Iterator[Record]:
    """A record for each number of threads, network, rule and augmentation; then one of the metrics."""
    before = torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="biotorch-benchmark-") as folder:
        for threads in arguments.thread_numbers:
            torch.set_num_threads(threads)
            for network in arguments.networks:
                path = Path(folder) / f"{network}.npz"
                if not path.exists():
                    random_images(path, arguments.images, NETWORKS[network].shape)
                for rule in arguments.rules:
                    yield from _epochs(network, rule, path, arguments)
    torch.set_num_threads(before)
    if not arguments.no_metrics:
        yield _metrics(arguments.rounds)


def _epochs(network: str, rule: str, path: Path, arguments: argparse.Namespace) -> Iterator[Record]:
    systems = {each == "yes": _System.of(network, rule, path, each == "yes") for each in arguments.augmentation}
    cases: dict[tuple[bool, str], Callable[[], float]] = {}
    for augmented, system in systems.items():
        cases |= {(augmented, "loop"): system.loop, (augmented, "trainer"): system.trainer}
        if arguments.command:
            cases[augmented, "command"] = system.command
    interleaved(cases, 1)  # to warm up
    costs = interleaved(cases, arguments.rounds)
    for augmented, who in cases:
        if who != "loop":
            loops = costs[augmented, "loop"]
            figures: dict[str, float] = {"loop images/s": arguments.images / statistics.median(loops)}
            if who == "trainer" and augmented and False in systems:
                added = [after - before for after, before in zip(costs[True, who], costs[False, who], strict=True)]
                figures["augmentation µs/image"] = 1e6 * statistics.median(added) / arguments.images
            yield Record.of(
                ratio(costs[augmented, who], loops),
                benchmark="epoch",
                network=network,
                rule=rule,
                seconds=statistics.median(loops),
                settings={"of": who, "augmentation": "yes" if augmented else "no"},
                figures=figures,
            )


@dataclasses.dataclass
class _System:
    """A network under a rule and its data, ready for whole epochs of the loop, the trainer and the command."""

    config: Config
    dataset: data.Dataset
    model: nn.Module
    looped: nn.Module

    @classmethod
    def of(cls, network: str, rule: str, path: Path, augmented: bool) -> _System:
        augment = {"crop": 4, "flip": True} if augmented else False
        tree = configuration(path, network, rule, 1, _BATCHES[network], augment=augment)
        tree["infrastructure"]["threads"] = torch.get_num_threads()
        config = validate(tree, "the benchmark").config
        dataset = data.load(config.data, config.experiment.seed)
        models = [
            build_model(config, dataset.num_outputs, dataset.input_shape).to(memory_format=torch.channels_last)
            for _ in range(2)
        ]
        return cls(config, dataset, *models)

    def loop(self) -> float:
        """Seconds of an epoch of the plain loop."""
        split, model = self.dataset.train, self.looped.train()
        assert isinstance(split, MemorySplit)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
        augmentation = split.augmentation
        start = time.perf_counter()
        pixels: Callable[[Tensor], Tensor] = partial(split.padded.index_select, 0)
        if augmentation.crop or augmentation.flip:
            pixels = augmentation.view(split.padded, 0)
        for index in torch.split(torch.randperm(len(split)), self.batch):
            images = split.normalisation(pixels(index))
            optimizer.zero_grad()
            F.cross_entropy(model(images), split.labels.index_select(0, index)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return time.perf_counter() - start

    def trainer(self) -> float:
        """Seconds of an epoch of the trainer, which is made as `biotorch run` makes it."""
        config, stopwatch = self.config, _Stopwatch()
        assert config.training is not None
        assert config.model.mode is not None
        experiment = config.experiment
        with repeatable(experiment.seed, experiment.deterministic, config.infrastructure.threads):
            Trainer(
                self.model,
                self.dataset,
                config.training,
                config.model.loss(self.dataset.task),
                experiment.seed,
                launched(config),
                observer=stopwatch,
                feedback=feedback_groups(self.model, config.model.mode),
            ).run()
        return stopwatch.seconds

    def command(self) -> float:
        """Seconds of an epoch of `biotorch run`, by the rate of the second of two epochs."""
        tree = self.config.model_dump(mode="json", exclude_unset=True)
        tree["training"]["hyperparameters"]["epochs"] = 2
        return len(self.dataset.train) / examples_per_second(tree)

    @property
    def batch(self) -> int:
        """Examples in a batch."""
        assert self.config.training is not None
        return self.config.training.hyperparameters.batch_size


class _Stopwatch(Observer):
    """Observer that times the first epoch, from the end of the measurements before it to its last update."""

    def on_epoch(self, record: EpochRecord) -> None:
        if record["epoch"] == 0:
            self.start = time.perf_counter()

    def on_update(self, trainer: TrainingState) -> None:
        self.seconds = time.perf_counter() - self.start


def _metrics(rounds: int) -> Record:
    stepper = Stepper(NETWORKS[_METRICS_NETWORK], "fa", Way())

    def measurements() -> float:
        start = time.perf_counter()
        metrics.alignment_angles(stepper.model)
        metrics.norm_ratios(stepper.model)
        metrics.gradient_alignment(stepper.model, loss, stepper.inputs, stepper.labels)
        return time.perf_counter() - start

    cases = {"metrics": measurements, "step": stepper.turn}
    interleaved(cases, 1)
    costs = interleaved(cases, rounds)
    epochs = [seconds * _METRICS_IMAGES / Way.batch for seconds in costs["step"]]
    share = ratio(costs["metrics"], epochs)
    return Record(
        benchmark="epoch",
        network=_METRICS_NETWORK,
        rule="fa",
        ratio=share.median,
        quartiles=(share.low, share.high),
        seconds=statistics.median(epochs),
        settings={"of": "alignment metrics"},
        figures={"share %": 100 * share.median},
    )
