"""The state of a training, which checkpoints save, and the observer that decides when to save it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from biotorch import _seeding
from biotorch.data import Dataset
from biotorch.errors import ResumeError, SectionError
from biotorch.layers import clip_grad_norm_, feedback_parameters
from biotorch.training import randomness
from biotorch.training.adversarial import Adversary
from biotorch.training.distributed import any_process, gather, one_process
from biotorch.training.divergence import diverged, require_finite
from biotorch.training.evaluation import Tally, loss_size
from biotorch.training.losses import Teacher
from biotorch.training.optimizers import FeedbackGroup
from biotorch.training.schedules import Schedule
from biotorch.training.settings import TrainingConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric


#: Figures of one epoch. The record of epoch 0 belongs to the network before training.
Record = dict[str, Any]


class Observer:
    """Base of observers, whose methods a training calls. By default they do nothing; override those you need.

    Examples:
        >>> class Printing(biotorch.training.Observer):
        ...     def on_epoch(self, record):
        ...         print(record["epoch"], sorted(record["validation"]))
        >>> Printing().on_epoch({"epoch": 1, "validation": {"loss": 0.5, "error": 12.0}})
        1 ['error', 'loss']
    """

    def on_noise(self, done: int, updates: int) -> None:
        """Called before each update on noise; `done` of the `updates` have been done."""

    def on_update(self, trainer: TrainingState) -> None:
        """Called after each update; `trainer.epoch`, `.step` and `.steps` give the position in the training."""

    def on_epoch(self, record: Record) -> None:
        """Called after each epoch with its figures."""

    def save(self, trainer: TrainingState) -> None:
        """Called when a checkpoint can be saved: `trainer.state_dict()`, which all processes have to call."""

    def save_now(self) -> bool:
        """Whether to save a checkpoint after this update or epoch."""
        return False

    def stop_now(self) -> bool:
        """Whether to save and stop, upon which `Stopped` is raised."""
        return False


class TrainingState:
    """Network, optimizer, schedule and position of a training. `Trainer`, the subclass, describes the arguments.

    Examples:
        >>> digits = biotorch.data.load(biotorch.data.DataConfig(dataset="digits"), seed=0)
        >>> config = biotorch.training.TrainingConfig(
        ...     hyperparameters={"epochs": 3, "batch_size": 64}, optimizer={"type": "SGD", "lr": 0.1}
        ... )
        >>> model = biotorch.models.fa.mlp(in_features=64, width=16)
        >>> state = biotorch.training.Trainer(model, digits, config, nn.functional.cross_entropy, seed=0)
        >>> state.epoch, state.step, state.steps  # epochs and updates done, updates of an epoch
        (0, 0, 20)
    """

    def __init__(
        self,
        model: nn.Module,
        data: Dataset,
        config: TrainingConfig,
        loss: Callable[[Tensor, Tensor], Tensor],
        seed: int,
        fabric: Fabric | None = None,
        observer: Observer | None = None,
        compiled: bool = False,
        evaluation_batch_size: int = 500,
        feedback: Sequence[FeedbackGroup] = (),
    ) -> None:
        self.model, self.data, self.config, self.loss, self.seed = model, data, config, loss, seed
        self.feedback = feedback
        self.fabric = fabric or one_process()
        self.observer = observer or Observer()
        self.evaluation_batch_size = evaluation_batch_size
        self.device, self.size = self.fabric.device, loss_size(loss)
        try:
            optimizer = self.new_optimizer()
        except ValueError as error:  # the optimizer does not take these weights
            raise SectionError({"optimizer": str(error)}) from error
        self.steps = len(self.updates_of(1))
        epochs, warmup = config.hyperparameters.epochs, round(config.warmup_epochs * self.steps)
        self.schedule = Schedule(optimizer, config.lr_scheduler, epochs, self.steps, warmup)
        adversarial = config.adversarial
        self.adversary = None if adversarial is None else Adversary(adversarial, model, data, self.fabric, seed)
        trained: Any = torch.compile(model) if compiled else model
        self.forward, self.optimizer = self.fabric.setup(trained, optimizer)
        self.teacher = Teacher(model, self.fabric)

        #: Epoch in progress (0 before training) and number of its updates that are done.
        self.epoch, self.step = 0, 0
        self.met_noise = config.noise_pretraining is None
        if config.noise_pretraining is not None:
            config.noise_pretraining.require_shares(self.fabric.world_size, self.smallest_share)
        self.tally, self.seconds = self.new_tally(), 0.0
        self.history: list[Record] = []
        self.best: dict[str, Any] = {"epoch": None, "model": None}
        self._skipped_before: list[str] = []

    def new_optimizer(self, lr: float | None = None) -> torch.optim.Optimizer:
        """Create the configuration's optimizer for all trained parameters; `lr` replaces its learning rate."""
        trained = (parameter for parameter in self.model.parameters() if parameter.requires_grad)
        return self.config.optimizer.build(trained, self.feedback, lr)

    def new_tally(self) -> Tally:
        """Create the empty sums of an epoch's figures."""
        return Tally.of(self.data.train, self.config.metrics.top_k, self.data.target_std, self.device)

    @property
    def skipped(self) -> list[str]:
        """Paths of the images that this process could not read since the training began."""
        return sorted({*self._skipped_before, *self.data.train.skipped, *self.data.validation.skipped})

    @property
    def examples_per_second(self) -> float:
        """Training examples per second of all processes in the epoch in progress."""
        size = self.config.hyperparameters.batch_size * self.config.hyperparameters.accumulate
        return min(self.step * size, len(self.data.train)) / max(self.seconds, 1e-9)

    def updates_of(self, epoch: int) -> list[Tensor]:
        """Indices of the examples in each update of an epoch; epoch 0 has no updates."""
        if epoch == 0:
            return []
        seed = _seeding.derive(self.seed, "data order", epoch)
        world, share = self.fabric.world_size, self.smallest_share
        smallest = share * world if share > 1 else 1
        size, accumulate = self.config.hyperparameters.batch_size, self.config.hyperparameters.accumulate
        return randomness.updates(len(self.data.train), size, accumulate, smallest, seed)

    @property
    def smallest_share(self) -> int:
        """Smallest number of examples per process in a training step: 2 if there is batch norm, else 1."""
        batched = any(isinstance(each, nn.modules.batchnorm._BatchNorm) for each in self.model.modules())
        return 2 if batched else 1

    # Gradients ---------------------------------------------------------------------------------

    def clip_gradients(self, optimizer: Any) -> None:
        """Clip the gradients to the configuration's norm, if any. Gradients of B do not count in the norm."""
        limit = self.config.clip_gradient_norm
        if limit is not None:
            self.fabric.strategy.precision.unscale_gradients(optimizer.optimizer)
            clip_grad_norm_(self.model, limit)

    def require_finite(self, value: Tensor) -> None:
        """Raise DivergenceError in all processes if the loss of any is not finite."""
        if any(any_process(self.fabric, not math.isfinite(value.item()))):
            raise diverged(self.model, value, self.epoch, self.step + 1, self.fabric.backward)

    # Saving and resuming -----------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """State from which the training continues to the bit, as tensors and plain values.

        All processes have to call this.

        Raises:
            DivergenceError: a weight is not finite.
        """
        require_finite(self.model, self.epoch, self.step)
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "random": randomness.snapshot(self.fabric),
            "met_noise": self.met_noise,
            "epoch": self.epoch,
            "step": self.step,
            "tally": gather(self.tally.sums.tolist(), self.fabric),
            "seconds": self.seconds,
            "history": copy.deepcopy(self.history),
            "best": self.best,
            "skipped": self.skipped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state`; `run` then continues from there.

        Raises:
            ResumeError: the state is of another number of processes, or of a version in which B was not a parameter.
        """
        self._require_feedback(state)
        randomness.restore(state["random"], self.fabric)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        if scaler is not None and state["scaler"] is not None:
            scaler.load_state_dict(state["scaler"])
        self.met_noise = state.get("met_noise", True)  # missing in older checkpoints
        self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
        self.tally.sums.copy_(torch.tensor(state["tally"][self.fabric.global_rank], dtype=torch.float64))
        self.history, self.best, self._skipped_before = state["history"], state["best"], state["skipped"]

    def _require_feedback(self, state: dict[str, Any]) -> None:
        """Raise ResumeError for a state of an early version (until 0.1), whose optimizer held no feedback weights."""
        saved, own = (
            sum(len(group["params"]) for group in groups)
            for groups in (state["optimizer"]["param_groups"], self.optimizer.param_groups)
        )
        learned = sum(parameter.requires_grad for parameter in feedback_parameters(self.model))
        if learned and saved == own - learned:
            raise ResumeError(
                "the checkpoint was written by an earlier version, whose optimizer did not hold feedback weights: "
                "start the run again with --overwrite; `biotorch evaluate` and biotorch.load still read it"
            )
