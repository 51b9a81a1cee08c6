"""The training loop: epochs of updates, each epoch measured, resumable after any update.

All randomness of data is a function of (seed, epoch, example), so nothing of it needs saving; the
generators that dropout draws from are saved with the rest.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from biotorch import _seeding, metrics
from biotorch.data import Dataset
from biotorch.errors import ResumeError, SectionError
from biotorch.layers import clip_grad_norm_, feedback_parameters
from biotorch.models.outputs import main_output
from biotorch.training import pretraining, randomness
from biotorch.training.adversarial import Adversary
from biotorch.training.distributed import any_process, gather, one_process, share_statistics
from biotorch.training.divergence import diverged, diverged_after, require_finite
from biotorch.training.evaluation import Tally, evaluate, loss_size
from biotorch.training.losses import Teacher, training_loss
from biotorch.training.observer import Observer, Record, Stopped
from biotorch.training.optimizers import FeedbackGroup
from biotorch.training.schedules import Schedule
from biotorch.training.settings import TrainingConfig


class Trainer:
    """Trains `model` on `data`: `run()`, or `load_state_dict(state)` and `run()` to continue.

    Args:
        model: a network under a rule, on the device of `data`; what needs no gradient is not trained.
        data: its splits, on the device of `fabric`.
        config: the `training` section.
        loss: `loss(outputs, labels)` of outputs (n, C) and labels (n,), or (n, T, C) and (n, T): the mean
            over a batch, a scalar. Auxiliary heads are added by `training_loss`.
        seed: of the order of the examples and of their augmentation.
        fabric: launched; default: one process on the CPU.
        observer: is told what happens, and keeps it.
        compiled: train through torch.compile.
        evaluation_batch_size: examples per batch in evaluation.
        feedback: parameter groups of the optimizer for feedback weights; those that are in none learn as W does.

    Raises:
        SectionError: optimizer or scheduler do not fit the network or the length of the training, there is
            adversarial training without images, or noise for fewer examples than processes.
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
        except ValueError as error:  # one that does not take these weights
            raise SectionError({"optimizer": str(error)}) from error
        self.steps = len(self._updates(1))
        epochs, warmup = config.hyperparameters.epochs, round(config.warmup_epochs * self.steps)
        self.schedule = Schedule(optimizer, config.lr_scheduler, epochs, self.steps, warmup)
        adversarial = config.adversarial
        self.adversary = None if adversarial is None else Adversary(adversarial, model, data, self.fabric, seed)
        trained: Any = torch.compile(model) if compiled else model
        self.forward, self.optimizer = self.fabric.setup(trained, optimizer)
        self.teacher = Teacher(model, self.fabric)

        #: Epoch in progress (0: none trained yet) and updates done in it.
        self.epoch, self.step = 0, 0
        self.met_noise = config.noise_pretraining is None
        if config.noise_pretraining is not None:
            config.noise_pretraining.require_shares(self.fabric.world_size, self._smallest_share)
        self.tally, self.seconds = self._new_tally(), 0.0
        self.history: list[Record] = []
        self.best: dict[str, Any] = {"epoch": None, "error": math.inf, "model": None}
        self._skipped_before: list[str] = []

    def new_optimizer(self, lr: float | None = None) -> torch.optim.Optimizer:
        """The optimizer of the configuration, of what is trained; `lr` takes the place of the configuration's."""
        trained = (parameter for parameter in self.model.parameters() if parameter.requires_grad)
        return self.config.optimizer.build(trained, self.feedback, lr)

    @property
    def skipped(self) -> list[str]:
        """Paths of the images that could not be read, by this process, since the training began."""
        return sorted({*self._skipped_before, *self.data.train.skipped, *self.data.validation.skipped})

    @property
    def examples_per_second(self) -> float:
        """That of the epoch in progress, over all processes."""
        size = self.config.hyperparameters.batch_size * self.config.hyperparameters.accumulate
        return min(self.step * size, len(self.data.train)) / max(self.seconds, 1e-9)

    # The loop ------------------------------------------------------------------------------------

    def run(self) -> list[Record]:
        """Train to the end and leave the model as the last update did; returns one record per epoch.

        Raises:
            DivergenceError: loss or weights are not finite.
            Stopped: the observer asked for it.
        """
        if not self.met_noise:
            pretraining.pretrain(self)
            self.met_noise = True
        while self.epoch <= self.config.hyperparameters.epochs and not self._early_stop():
            self._train()
            self._measure()
        self.observer.save(self)
        return self.history

    def _early_stop(self) -> bool:
        errors = [record["validation"]["error"] for record in self.history[1:]]
        return self.config.early_stop is not None and self.config.early_stop.reached(errors)

    def _train(self) -> None:
        """What is left of the epoch's updates; epoch 0 has none."""
        updates = self._updates(self.epoch)[self.step :]
        batches = self._batches(updates)
        self.model.train()
        start, before = time.perf_counter(), self.seconds
        for update in updates:
            whole = self.size(self.data.train.labels[update.to(self.data.train.labels.device)])
            sizes = [len(part) for part in torch.split(update, self.config.hyperparameters.batch_size)]
            for index in range(len(sizes)):
                inputs, labels, counts = next(batches)
                if self.adversary is not None:
                    inputs = self.adversary(inputs, labels, self.epoch, self.step, index)
                with self.fabric.no_backward_sync(self.forward, enabled=index < len(sizes) - 1):
                    with self.teacher.tells(labels, 1 / whole if counts else 0.0):
                        outputs = self.forward(inputs)
                    value = training_loss(self.loss, outputs, labels)
                    self.require_finite(value)
                    if index == 0:
                        self.optimizer.zero_grad()
                    size = self.size(labels) if counts else 0
                    self.fabric.backward(value * (size / whole))
                if counts:
                    self.tally.add(value, size, main_output(outputs), labels)
            self.clip_gradients(self.optimizer)
            self.optimizer.step()
            self.schedule.after_update()
            self.step += 1
            self.seconds = before + time.perf_counter() - start
            self.observer.on_update(self)
            self._save_or_stop()

    def _measure(self) -> None:
        """Close the epoch: validation, metrics, the best model so far, the learning rate of the next."""
        record: Record = {"epoch": self.epoch, "learning_rate": self.optimizer.param_groups[0]["lr"]}
        if self.epoch > 0:
            record["train"] = self.tally.result(self.fabric)
            record["seconds"] = self.seconds
            record["examples_per_second"] = self.examples_per_second
        share_statistics(self.model, self.fabric)
        record["validation"] = evaluate(
            self.model,
            self.data.validation,
            self.loss,
            self.config.metrics.top_k,
            self.evaluation_batch_size,
            self.fabric,
            on_batch=self._stop_if_asked,
        )
        if not math.isfinite(record["validation"]["loss"]):
            raise diverged_after(self.model, record["validation"]["loss"], self.epoch, self.step)
        record |= self._alignment()
        if self.epoch > 0:
            if record["validation"]["error"] < self.best["error"]:
                best = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
                self.best = {"epoch": self.epoch, "error": record["validation"]["error"], "model": best}
            self.schedule.after_epoch(record["validation"]["error"])
        self.history.append(record)
        self.epoch, self.step = self.epoch + 1, 0
        self.tally, self.seconds = self._new_tally(), 0.0
        self.observer.on_epoch(record)
        if self.epoch == 1:
            self.observer.save(self)  # so that there is a good state from the start
        self._save_or_stop()

    def _alignment(self) -> Record:
        """Per layer, on the first process alone: all have the same weights."""
        record: Record = {}
        wanted = self.config.metrics
        if not self.fabric.is_global_zero:
            return record
        if wanted.weight_alignment:
            record["angles"] = metrics.alignment_angles(self.model)
        if wanted.weight_ratio:
            record["norm_ratios"] = metrics.norm_ratios(self.model)
        if wanted.gradient_alignment:
            size = self.config.hyperparameters.batch_size
            probe = next(self.data.train.batches([torch.arange(min(size, len(self.data.train)))]))
            trained_on = partial(training_loss, self.loss)
            record["gradient_angles"] = metrics.gradient_alignment(self.model, trained_on, *probe)
        return record

    def clip_gradients(self, optimizer: Any) -> None:
        """To the norm that the configuration gives, if any: that of W's gradients, without those of a B that learns."""
        limit = self.config.clip_gradient_norm
        if limit is not None:
            self.fabric.strategy.precision.unscale_gradients(optimizer.optimizer)
            clip_grad_norm_(self.model, limit)

    def require_finite(self, value: Tensor) -> None:
        """Raises DivergenceError, in all processes, where the loss of one is not finite."""
        if any(any_process(self.fabric, not math.isfinite(value.item()))):
            raise diverged(self.model, value, self.epoch, self.step + 1, self.fabric.backward)

    # Data ----------------------------------------------------------------------------------------

    def _updates(self, epoch: int) -> list[Tensor]:
        """Indices of the examples of each update of an epoch; epoch 0 has none."""
        if epoch == 0:
            return []
        seed = _seeding.derive(self.seed, "data order", epoch)
        world, share = self.fabric.world_size, self._smallest_share
        smallest = share * world if share > 1 else 1
        size, accumulate = self.config.hyperparameters.batch_size, self.config.hyperparameters.accumulate
        return randomness.updates(len(self.data.train), size, accumulate, smallest, seed)

    @property
    def _smallest_share(self) -> int:
        """How many examples a process needs for a training step: two where there are statistics of a batch."""
        batched = any(isinstance(each, nn.modules.batchnorm._BatchNorm) for each in self.model.modules())
        return 2 if batched else 1

    def _batches(self, updates: list[Tensor]) -> Iterator[tuple[Tensor, Tensor, bool]]:
        """Inputs and labels of this process's share of each batch, and whether they count.

        A process without a share (a last batch with fewer examples than processes, or none that can be
        read) goes through the motions with an example that counts nothing: the others wait for its gradients.
        """
        size, rank, world = self.config.hyperparameters.batch_size, self.fabric.global_rank, self.fabric.world_size
        parts, counts = randomness.shares(updates, size, rank, world)
        augmentation = _seeding.derive(self.seed, "augmentation", self.epoch)
        for (inputs, labels), count in zip(self.data.train.batches(parts, augmentation), counts, strict=True):
            if len(labels):
                yield inputs, labels, count > 0
            else:
                yield inputs.new_zeros(1, *inputs.shape[1:]), labels.new_zeros(1, *labels.shape[1:]), False

    # Stopping, saving, resuming --------------------------------------------------------------------

    def _save_or_stop(self) -> None:
        stop, save = any_process(self.fabric, self.observer.stop_now(), self.observer.save_now())
        if stop or save:
            self.observer.save(self)
        if stop:
            raise Stopped

    def _stop_if_asked(self) -> None:
        if any(any_process(self.fabric, self.observer.stop_now())):
            self.observer.save(self)
            raise Stopped

    def _new_tally(self) -> Tally:
        return Tally(self.config.metrics.top_k, self.data.train.per_token, self.device)

    def state_dict(self) -> dict[str, Any]:
        """Everything that continues the training to the bit: tensors and plain values. Called by all processes.

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
        """Continue where `state` was taken.

        Raises:
            ResumeError: it was taken with another number of processes, or before B was a parameter.
        """
        self._require_feedback(state)
        randomness.restore(state["random"], self.fabric)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        if scaler is not None and state["scaler"] is not None:
            scaler.load_state_dict(state["scaler"])
        self.met_noise = state.get("met_noise", True)  # older ones know of no such phase
        self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
        self.tally.sums.copy_(torch.tensor(state["tally"][self.fabric.global_rank], dtype=torch.float64))
        self.history, self.best, self._skipped_before = state["history"], state["best"], state["skipped"]

    def _require_feedback(self, state: dict[str, Any]) -> None:
        """Until version 0.1 the optimizer's state was that of W alone."""
        saved, own = (
            sum(len(group["params"]) for group in groups)
            for groups in (state["optimizer"]["param_groups"], self.optimizer.param_groups)
        )
        learned = sum(parameter.requires_grad for parameter in feedback_parameters(self.model))
        if learned and saved == own - learned:
            raise ResumeError(
                "the checkpoint is of an earlier version, which kept feedback weights that learn out of the optimizer: "
                "begin the run anew with --overwrite; `biotorch evaluate` and biotorch.load read it as it is"
            )
