"""One run: configuration, data, model under a rule, training with metrics, test, results on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from biotorch import _files, _seeding, data
from biotorch._files import state_hash
from biotorch.errors import ConfigError, Interrupted, SectionError
from biotorch.experiment import checkpoints, results
from biotorch.experiment.config import Config
from biotorch.experiment.display import Display
from biotorch.experiment.folder import RunFolder
from biotorch.experiment.identity import (
    checkpoint_digest,
    claim,
    data_of,
    is_own,
    own_config,
    read_checkpoint,
    require_same_data,
    require_same_run,
    resolved,
)
from biotorch.experiment.importing import import_all
from biotorch.experiment.keeping import Keeper
from biotorch.experiment.network import build_model, check_input, feedback_groups
from biotorch.experiment.results import Result
from biotorch.experiment.signals import StopRequest
from biotorch.training import Stopped, Trainer, TrainingConfig, evaluate, launch
from biotorch.training.distributed import gather, require_equal_feedback
from biotorch.training.losses import Loss
from biotorch.training.randomness import repeatable

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def launched(config: Config) -> Fabric:
    """Start or join the processes of a run. Raises ConfigError if `infrastructure` does not fit those started."""
    try:
        return launch(config.infrastructure)
    except SectionError as error:
        raise ConfigError(f"infrastructure: {error}") from error


_T = TypeVar("_T")


@dataclasses.dataclass
class Run:
    """Run of one point of a study: its configuration, and the objects made from it.

    Attributes:
        config: the configuration, completed with settings that depend on the machine.
        fabric: the launched processes.
        folder: the folder of the run.
        dataset: the data, on the device of `fabric`.
        model: the network under its rule, on the same device.
        display: object that shows the progress.
        request: object that knows whether a signal has asked to stop.
        state: checkpoint from which the training continues, until it has taken it; None for a new run.
    """

    config: Config
    fabric: Fabric
    folder: RunFolder
    dataset: data.Dataset
    model: nn.Module
    display: Display
    request: StopRequest
    state: dict[str, Any] | None = None

    @functools.cached_property
    def loss(self) -> Loss:
        """Loss of the configuration, on the device of `fabric`."""
        return self.config.model.loss(self.dataset.task).to(self.fabric.device)

    def result(self) -> Result:
        """Train and test, as far as the configuration asks for it, and return the content of results.json."""
        config, start = self.config, time.perf_counter()
        outcome: Result = {"validation": None, "history": [], "seconds": 0.0, "skipped_images": []}
        if config.training is not None:
            outcome = self._train(config.training)
            start = time.perf_counter()
        hashed = outcome.pop("state_hash", None) or state_hash(self.model.state_dict())
        test = None
        if config.evaluation:
            top_k = config.training.metrics.top_k if config.training else 1
            batch = config.data.evaluation_batch_size
            scale = self.dataset.target_std
            test = evaluate(self.model, self.dataset.test, self.loss, top_k, batch, self.fabric, scale=scale)
        skipped = gather(outcome["skipped_images"] + self.dataset.test.skipped, self.fabric)
        return {
            "config": config.model_dump(mode="json"),
            "data": self.dataset.record,
            "started_from": checkpoint_digest(config.model),
            "best_state_hash": None,
            **outcome,
            "test": test,
            "state_hash": hashed,
            "skipped_images": sorted({path for paths in skipped for path in paths}),
            "seconds": outcome["seconds"] + time.perf_counter() - start,
            "environment": results.environment(self.fabric, config.infrastructure.threads),
        }

    def _train(self, training: TrainingConfig) -> Result:
        """Train the model, or continue. It ends with the weights of its best epoch; `state_hash` is of the last one."""
        trainer = self._trainer(training)
        seconds = 0.0
        if self.state is not None:
            trainer.load_state_dict(self.state)
            seconds, self.state = self.state["seconds_in_all"], None
        keeper = Keeper(trainer, self.config, self.folder, self.display, self.request, seconds)
        with keeper, self.request.deferred():
            trainer.observer = keeper
            try:
                trainer.run()
            except Stopped as error:
                raise Interrupted(self.request.number or signal.SIGTERM) from error
        require_equal_feedback(self.model, self.fabric)
        hashed = state_hash(self.model.state_dict())
        self.model.load_state_dict(trainer.best["model"])
        return {
            "validation": trainer.history[trainer.best["epoch"]]["validation"],
            "best_epoch": trainer.best["epoch"],
            "history": trainer.history,
            "state_hash": hashed,
            "best_state_hash": state_hash(trainer.best["model"]),
            "skipped_images": trainer.skipped,
            "seconds": keeper.seconds_in_all,
        }

    def _trainer(self, training: TrainingConfig) -> Trainer:
        config, batch_size = self.config, training.hyperparameters.batch_size
        assert config.model.mode is not None
        if batch_size < self.fabric.world_size:
            raise ConfigError(
                f"training.hyperparameters.batch_size: {batch_size} examples are too few for "
                f"{self.fabric.world_size} processes: give at least one example per process"
            )
        if config.infrastructure.compile:
            torch.compiler.reset()  # graphs of an earlier run may fit, and be slower or round differently
        try:
            return Trainer(
                self.model,
                self.dataset,
                training,
                self.loss,
                config.experiment.seed,
                self.fabric,
                compiled=config.infrastructure.compile,
                evaluation_batch_size=config.data.evaluation_batch_size,
                feedback=feedback_groups(self.model, config.model.mode),
            )
        except SectionError as error:
            raise ConfigError(f"training.{error}") from error


def run_point(
    config: Config,
    path: Path,
    display: Display | None = None,
    request: StopRequest | None = None,
    discards: str = "",
) -> Result:
    """Train and test one network in the folder `path`; a run with a checkpoint continues from there.

    An earlier run that bears the mark `discards` is deleted first.

    Raises:
        LockedError: another process works on the folder.
        OtherRunError: the folder holds another run, a run on other data, or files that no run has written.
        ConfigError: network, loss, optimizer, processes and data do not fit each other.
        LostFolderError: the folder was deleted or replaced during the run.
        DivergenceError: loss or weights are no longer finite; the last good checkpoint stays.
        Interrupted: a signal has asked to stop; the checkpoint is on disk.

    Examples:
        >>> study = biotorch.experiment.read("study.yaml")
        >>> result = biotorch.experiment.run_point(study.config, Path("runs/point"))
        >>> sorted(result["test"])
        ['error', 'loss']
    """
    import_all(config.imports)  # a new process has not imported them yet
    fabric, folder = launched(config), RunFolder(path, discards)
    with _locked(folder, fabric):
        earlier = on_first(fabric, lambda: None if folder.discarded else folder.read_config())
        config = on_first(fabric, lambda: resolved(config, earlier))
        with repeatable(config.experiment.seed, config.experiment.deterministic, config.infrastructure.threads):
            dataset = _dataset(config).to(fabric.device)
            config.require_kind(dataset.kind)
            config = config.for_task(dataset.task)
            on_first(fabric, lambda: claim(config, earlier, folder))
            state = None if folder.discarded else _saved(config, folder, dataset, fabric)
            model = build_model(config, dataset.num_outputs, dataset.input_shape).to(fabric.device)
            if config.infrastructure.channels_last and dataset.kind == "images":
                model = model.to(memory_format=torch.channels_last)
            check_input(model, dataset.train, config)
            on_first(fabric, lambda: folder.begin(config.model_dump(mode="json")))
            if fabric.world_size > 1:  # each process draws its own dropout masks
                torch.manual_seed(_seeding.derive(config.experiment.seed, "rank", fabric.global_rank))
            run = Run(config, fabric, folder, dataset, model, display or Display(), request or StopRequest(), state)
            result = run.result()
        return on_first(fabric, lambda: _finish(folder, result))


def _dataset(config: Config) -> data.Dataset:
    """Data of a run, which a network of this package that it starts from understands.

    A network that is only evaluated gets the training split of its own seed, by which its inputs are prepared.
    """
    source, training, seed = config.model.checkpoint, config.training is not None, config.experiment.seed
    content = None if source is None else read_checkpoint(source)
    if content is None or not is_own(content):
        return data.load(config.data, seed)
    own = own_config(content, str(source))
    dataset = data.load(config.data, seed) if training else data.load(config.data, own.experiment.seed, own.data)
    require_understood(content, f"model.checkpoint: {source}", dataset, training)
    return dataset


def require_understood(content: dict[str, Any], run: str, dataset: data.Dataset, training: bool = False) -> None:
    """Check that to the network of the checkpoint `content`, named `run`, outputs and inputs of the data mean the same.

    Raises:
        ConfigError: they do not, and there will be no `training` by which the network could learn it.

    Warns:
        UserWarning: they do not, in the training of a network with the right number of outputs.
    """
    told = data.misread(data_of(content), dataset.record)
    if told is not None and not training:
        cure = "; other rows are given alone, as data.test" if dataset.kind == "table" else ""
        raise ConfigError(f"{run} {told}{cure}")
    if told is not None and content["num_classes"] == dataset.num_outputs:
        warnings.warn(f"{run} {told}: it has to learn the difference", stacklevel=2)


def _saved(config: Config, folder: RunFolder, dataset: data.Dataset, fabric: Fabric) -> dict[str, Any] | None:
    """The newest checkpoint of an earlier start, if any.

    Raises OtherRunError if it was trained on other data, and CheckpointError if it is of another run.
    """
    newest = on_first(fabric, lambda: checkpoints.newest(folder.latest))
    if newest is None:
        return None
    state = checkpoints.load(newest)  # to the CPU, where generators stay; the rest is copied to its device
    checkpoints.require_format(state, newest)
    require_same_run(state, newest, config.model_dump(mode="json"))
    require_same_data(data_of(state), dataset.record, folder.path)
    return state


def _finish(folder: RunFolder, result: Result) -> Result:
    folder.require_held()
    if "error" in (result["validation"] or ()):
        _files.write_text(folder.best_accuracy, f"{100 - result['validation']['error']}\n")
    _files.previous(folder.latest).unlink(missing_ok=True)
    return results.save(folder.results, result)


# Several processes ---------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(folder: RunFolder, fabric: Fabric) -> Iterator[None]:
    on_first(fabric, folder.lock)
    try:
        with folder.noticing():
            yield
    finally:
        if fabric.is_global_zero:
            folder.release()


def on_first(fabric: Fabric, action: Callable[[], _T]) -> _T:
    """Run `action` in the first process only. All processes return its value, or raise its exception."""
    outcome: tuple[_T | None, Exception | None] = (None, None)
    if fabric.is_global_zero:
        try:
            outcome = (action(), None)
        except Exception as error:  # noqa: BLE001 - raised again below in all processes, which would wait forever otherwise
            outcome = (None, error)
    value, problem = fabric.broadcast(outcome)
    if problem is not None:
        raise problem
    return value  # type: ignore[return-value]
