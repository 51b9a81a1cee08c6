"""Estimates of a study's duration and of the best number of processes."""

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
from torch import Tensor, nn

from biotorch import models
from biotorch.errors import Interrupted
from biotorch.experiment.config import Config
from biotorch.experiment.display import Display
from biotorch.experiment.executors.local import cores
from biotorch.experiment.point import run_point
from biotorch.experiment.signals import StopRequest
from biotorch.models.outputs import main_output
from biotorch.training import Record, TrainingState
from biotorch.training.distributed import one_of_several

#: Least gain, as a ratio, for which a process gets more threads. It keeps the choice the same on a noisy machine.
_GAIN = 1.2
#: Updates that are timed for the choice of threads, and seconds after which one is enough.
_STEPS, _STEP_SECONDS = 3, 0.3

#: Number of updates that are timed, and seconds after which fewer are enough.
_UPDATES, _SECONDS = 30, 5.0

#: Share of an update's time that its forward pass takes.
_FORWARD = 1 / 3


def best_jobs(points: Mapping[str, Config]) -> int:
    """Best number of processes for these points on this machine: one per GPU, or enough to keep the CPU's cores busy.

    Small networks run faster in several one-thread processes than one after another with all threads. If torchrun or
    Slurm has started the processes of one run, the number is 1.
    """
    if not points or one_of_several():
        return 1
    on_gpus = [config for config in points.values() if config.infrastructure.gpus != -1]
    if on_gpus and torch.cuda.is_available():
        alone = all(isinstance(config.infrastructure.gpus, int) for config in on_gpus)
        return min(len(points), torch.cuda.device_count()) if alone else 1
    kinds = {_kind(config): config for config in points.values()}
    threads = max(config.infrastructure.threads or _best_threads(config) for config in kinds.values())
    return max(1, min(len(points), cores() // threads))


def _best_threads(config: Config) -> int:
    """Number of CPU threads per process with which processes side by side do most updates, measured on this machine.

    It is 1 for a network that does not take colour images, or cannot be built, which the run itself reports.
    """
    if config.model.architecture is None or config.training is None or cores() == 1:
        return 1
    size, arguments = config.data.target_size or 32, config.model.arguments
    before, best, rate = torch.get_num_threads(), 1, 0.0
    try:
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = models.build(config.model.architecture, 10, input_shape=(3, size, size), **arguments)
            images = torch.randn(config.training.hyperparameters.batch_size, 3, size, size)
            for threads in (2**power for power in range(cores().bit_length())):
                torch.set_num_threads(threads)
                found = cores() // threads / _step_seconds(network, images, config.infrastructure.precision)
                if found > _GAIN * rate:
                    best, rate = threads, found
    except (ValueError, TypeError, RuntimeError, ModuleNotFoundError):
        return 1
    finally:
        torch.set_num_threads(before)
    return best


def _step_seconds(network: nn.Module, images: Tensor, precision: str) -> float:
    """Seconds of an update without the optimizer's step: the best of a few, after one that does not count."""
    times: list[float] = []
    while (len(times) <= _STEPS and sum(times) < _STEP_SECONDS) or len(times) < 2:
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision.startswith("bf16")):
            outputs = main_output(network(images))
        outputs.float().square().mean().backward()  # type: ignore[no-untyped-call]
        times.append(time.perf_counter() - start)
    return min(times[1:])


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Estimated seconds of one point: of an update, of everything before the first update, and of the whole run."""

    update: float
    before: float
    seconds: float


def estimates(points: Mapping[str, Config]) -> Iterator[tuple[str, Estimate]]:
    """Names of the points with the time that each would take alone.

    The first point of each kind (network, data set, batch size, precision, threads) is timed for some updates, with the
    threads that it asks for. Nothing is left on disk.

    Raises:
        Any exception of `run_point`.
    """
    measured: dict[tuple[object, ...], _Stopwatch] = {}
    for name, config in points.items():
        kind = _kind(config)
        if kind not in measured:
            measured[kind] = _measure(config)
        yield name, measured[kind].estimate(config)


def _kind(config: Config) -> tuple[object, ...]:
    """Key of a point, equal for points whose updates take the same time."""
    return (
        config.model.architecture,
        str(config.model.arguments),
        config.data.dataset,
        config.data.target_size,
        None if config.training is None else config.training.hyperparameters.batch_size,
        config.infrastructure.precision,
        config.infrastructure.threads,
    )


def _measure(config: Config) -> _Stopwatch:
    request = StopRequest()
    stopwatch = _Stopwatch(request)
    logging = config.logging.model_copy(update={"tensorboard": False, "wandb": None})
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(Interrupted):  # raised by the stopwatch's own request
            run_point(config.model_copy(update={"logging": logging}), Path(folder), stopwatch, request)
    return stopwatch


class _Stopwatch(Display):
    """Display that times some updates, and then requests a stop."""

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
        """Estimate for a point of the timed kind."""
        if len(self.times) < 2:  # the point only evaluates, or has very few updates
            seconds = time.perf_counter() - self.begin
            return Estimate(0.0, seconds, seconds)
        assert config.training is not None
        gaps = sorted(later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False))
        update = gaps[len(gaps) // 2]
        epoch = update * self.steps * (1 + _FORWARD * self.validated / max(1, self.trained))
        return Estimate(update, self.before, self.before + epoch * config.training.hyperparameters.epochs)
