"""How long a study would take, and in how many processes it is best run."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from biotorch import models
from biotorch.errors import Interrupted
from biotorch.experiment.config import Config
from biotorch.experiment.display import Display
from biotorch.experiment.executors.local import cores
from biotorch.experiment.point import run_point
from biotorch.experiment.signals import StopRequest
from biotorch.training import Record, TrainingState
from biotorch.training.distributed import one_of_several

#: Parameters up to which this many CPU threads are the fastest for a network: the first by benchmarks/jobs.py on two
#: cores, the second not measured.
_THREADS = ((2_000_000, 1), (20_000_000, 4))
_MOST_THREADS = 8

#: What is measured of a point: updates, and seconds after which fewer are enough.
_UPDATES, _SECONDS = 30, 5.0

#: A forward pass is about a third of an update.
_FORWARD = 1 / 3


def best_jobs(points: Mapping[str, Config]) -> int:
    """Processes for these points on this machine: one per GPU; on the CPU, so many that the cores are busy.

    Small networks run faster in several one-thread processes than one after another with all threads. Where torchrun
    or Slurm has started the processes of one run, points go one after another.
    """
    if not points or one_of_several():
        return 1
    on_gpus = [config for config in points.values() if config.infrastructure.gpus != -1]
    if on_gpus and torch.cuda.is_available():
        alone = all(isinstance(config.infrastructure.gpus, int) for config in on_gpus)
        return min(len(points), torch.cuda.device_count()) if alone else 1
    threads = max(_threads(config) for config in points.values())
    return max(1, min(len(points), cores() // threads))


def _threads(config: Config) -> int:
    if config.infrastructure.threads is not None:
        return config.infrastructure.threads
    size = _parameters(config)
    return next((threads for limit, threads in _THREADS if size < limit), _MOST_THREADS)


def _parameters(config: Config) -> int:
    """Parameters of the network; 0 where a checkpoint alone knows it."""
    if config.model.architecture is None:
        return 0
    shape = (3, config.data.target_size or 32, config.data.target_size or 32)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = models.build(config.model.architecture, 10, input_shape=shape, **config.model.arguments)
        except (ValueError, TypeError, RuntimeError):  # the run itself tells what is wrong with it
            return 0
    return sum(each.numel() for each in model.parameters())


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Of one point: seconds of an update and of everything before the first one, and of the whole."""

    update: float
    before: float
    seconds: float


def estimates(points: Mapping[str, Config]) -> Iterator[tuple[str, Estimate]]:
    """For each point the time that it would take alone; measured at the first of each network on each data set.

    Nothing is left on disk. Points are measured with some updates of their own, with the threads that they ask for.

    Raises:
        what `run_point` raises.
    """
    measured: dict[tuple[object, ...], _Stopwatch] = {}
    for name, config in points.items():
        kind = (
            config.model.architecture,
            str(config.model.arguments),
            config.data.dataset,
            config.data.target_size,
            None if config.training is None else config.training.hyperparameters.batch_size,
            config.infrastructure.precision,
            config.infrastructure.threads,
        )
        if kind not in measured:
            measured[kind] = _measure(config)
        yield name, measured[kind].estimate(config)


def _measure(config: Config) -> _Stopwatch:
    request = StopRequest()
    stopwatch = _Stopwatch(request)
    logging = config.logging.model_copy(update={"tensorboard": False, "wandb": None})
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(Interrupted):  # by the stopwatch itself
            run_point(config.model_copy(update={"logging": logging}), Path(folder), True, stopwatch, request)
    return stopwatch


class _Stopwatch(Display):
    """Times some updates, then asks to stop."""

    def __init__(self, request: StopRequest) -> None:
        self.request, self.begin = request, time.perf_counter()
        self.times: list[float] = []
        self.before = self.whole = 0.0
        self.steps = self.trained = self.validated = 0

    def epoch(self, record: Record, name: str | None = None) -> None:
        self.whole = time.perf_counter() - self.begin
        self.before = self.before or self.whole

    def update(self, trainer: TrainingState) -> None:
        now = time.perf_counter()
        self.times.append(now)
        self.steps, self.trained = trainer.steps, len(trainer.data.train)
        self.validated = len(trainer.data.validation)
        if len(self.times) > _UPDATES or (len(self.times) > 3 and now - self.times[0] > _SECONDS):
            self.request.number = signal.SIGTERM

    def estimate(self, config: Config) -> Estimate:
        """Of a point like the one that was timed."""
        if len(self.times) < 2:  # it only evaluates, or is over in a moment
            seconds = time.perf_counter() - self.begin
            return Estimate(0.0, seconds, seconds)
        assert config.training is not None
        gaps = sorted(later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False))
        update = gaps[len(gaps) // 2]
        epoch = update * self.steps * (1 + _FORWARD * self.validated / max(1, self.trained))
        return Estimate(update, self.before, self.before + epoch * config.training.hyperparameters.epochs)
