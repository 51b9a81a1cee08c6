"""The training loop: epochs of updates, with measurements after each epoch; it can be resumed after any update.

All randomness in the data is a function of (seed, epoch, example), so it needs no saved state. The generators from
which dropout draws are part of the checkpoint.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from biotorch import _seeding, metrics
from biotorch.data import Dataset
from biotorch.errors import Stopped
from biotorch.models.outputs import main_output
from biotorch.training import pretraining, randomness
from biotorch.training.distributed import any_process, share_statistics
from biotorch.training.divergence import diverged_after
from biotorch.training.evaluation import evaluate
from biotorch.training.figures import judged
from biotorch.training.losses import training_loss
from biotorch.training.settings import TrainingConfig
from biotorch.training.state import Observer, Record, TrainingState


class Trainer(TrainingState):
    """Training of `model` on `data`: call `run()`, or `load_state_dict(state)` and `run()` to continue.

    Args:
        model: a network under a rule, on the device of `data`; parameters that need no gradient are not trained.
        data: the dataset, on the device of `fabric`.
        config: the `training` section.
        loss: function called as `loss(outputs, labels)` with outputs (n, C) and labels (n,), or (n, T, C) and (n, T),
            or in a regression (n, C) and (n, C), which returns the mean over a batch, a scalar. `training_loss` adds
            the auxiliary heads.
        seed: seed of the order of the examples and of their augmentation.
        fabric: the launched processes; default: one process on the CPU.
        observer: object whose methods are called as the training proceeds, and which saves checkpoints.
        compiled: whether to train through torch.compile.
        evaluation_batch_size: examples per batch in evaluation.
        feedback: parameter groups of the optimizer for feedback weights; feedback weights in no group get the settings
            of W.

    Raises:
        SectionError: optimizer or scheduler do not fit the network or the length of the training; adversarial training
            has no images; or an update of the pretraining on noise has too few examples for all processes.

    Examples:
        >>> digits = biotorch.data.load(biotorch.data.DataConfig(dataset="digits"), seed=0)
        >>> config = biotorch.training.TrainingConfig(
        ...     hyperparameters={"epochs": 1, "batch_size": 64}, optimizer={"type": "Adam", "lr": 0.01}
        ... )
        >>> model = biotorch.models.fa.mlp(in_features=64, width=16)
        >>> trainer = biotorch.training.Trainer(model, digits, config, nn.functional.cross_entropy, seed=0)
        >>> [record["epoch"] for record in trainer.run()]
        [0, 1]
    """

    def run(self) -> list[Record]:
        """Train to the end and return one record per epoch. The model has the weights after the last update.

        Raises:
            DivergenceError: loss or weights are not finite.
            Stopped: the observer asked to stop.
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
        values = [judged(record["validation"]) for record in self.history[1:]]
        return self.config.early_stop is not None and self.config.early_stop.reached(values)

    def _train(self) -> None:
        """Do the remaining updates of the epoch; epoch 0 has none."""
        updates = self.updates_of(self.epoch)[self.step :]
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
                    self._add_gradients(inputs, labels, whole, counts, first=index == 0)
            self.clip_gradients(self.optimizer)
            self.optimizer.step()
            self.schedule.after_update()
            self.step += 1
            self.seconds = before + time.perf_counter() - start
            self.observer.on_update(self)
            self._save_or_stop()

    def _add_gradients(self, inputs: Tensor, labels: Tensor, whole: float, counts: bool, first: bool) -> None:
        """Run one batch forward and backward.

        Nothing of the batch outlives this call, so that the next one finds the memory in the cache.

        Args:
            inputs: inputs of the batch.
            labels: its labels.
            whole: divisor of the mean loss of the whole update.
            counts: whether the batch counts, see `_batches`.
            first: whether it is the first batch of the update.
        """
        with self.teacher.tells(labels, 1 / whole if counts else 0.0):
            outputs = self.forward(inputs)
        value = training_loss(self.loss, outputs, labels)
        self.require_finite(value)
        if first:  # not before, because a loss that is not finite is explained by the earlier gradients
            self.optimizer.zero_grad()
        size = self.size(labels) if counts else 0
        self.fabric.backward(value if size == whole else value * (size / whole))
        if counts:
            self.tally.add(value, size, main_output(outputs), labels)

    def _measure(self) -> None:
        """Close the epoch: validate, measure metrics, keep the best model, set the next epoch's learning rate."""
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
            scale=self.data.target_std,
        )
        if not math.isfinite(record["validation"]["loss"]):
            raise diverged_after(self.model, record["validation"]["loss"], self.epoch, self.step)
        record |= self._alignment()
        if self.epoch > 0:
            value, best = judged(record["validation"]), self.best["epoch"]
            if best is None or value < judged(self.history[best]["validation"]):
                weights = {name: each.detach().clone() for name, each in self.model.state_dict().items()}
                self.best = {"epoch": self.epoch, "model": weights}
            self.schedule.after_epoch(value)
        self.history.append(record)
        self.epoch, self.step = self.epoch + 1, 0
        self.tally, self.seconds = self.new_tally(), 0.0
        self.observer.on_epoch(record)
        if self.epoch == 1:
            self.observer.save(self)  # so that a good state exists from the start
        self._save_or_stop()

    def _alignment(self) -> Record:
        """Measure angles and norm ratios per layer, only on the first process: all have the same weights."""
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

    # Data --------------------------------------------------------------------------------------

    def _batches(self, updates: list[Tensor]) -> Iterator[tuple[Tensor, Tensor, bool]]:
        """Inputs and labels of this process's share of each batch, and whether they count.

        If a process has no share (because the last batch has fewer examples than processes, or no image can be read),
        it gets an example that does not count. It has to do the update, because the others wait for its gradients.
        """
        size, rank, world = self.config.hyperparameters.batch_size, self.fabric.global_rank, self.fabric.world_size
        parts, counts = randomness.shares(updates, size, rank, world)
        augmentation = _seeding.derive(self.seed, "augmentation", self.epoch)
        for (inputs, labels), count in zip(self.data.train.batches(parts, augmentation), counts, strict=True):
            if len(labels):
                yield inputs, labels, count > 0
            else:
                yield inputs.new_zeros(1, *inputs.shape[1:]), labels.new_zeros(1, *labels.shape[1:]), False

    # Stopping ----------------------------------------------------------------------------------

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


def fit(
    model: nn.Module,
    data: Dataset,
    config: TrainingConfig,
    loss: Callable[[Tensor, Tensor], Tensor],
    seed: int,
    on_epoch: Callable[[Record], None] = lambda record: None,
) -> list[Record]:
    """Train `model` in place on the CPU and return the records. The model gets the weights of its best epoch.

    The best epoch has the lowest validation error, or in a regression the lowest validation loss. This is a short form
    of `Trainer`, and raises the same errors.

    Examples:
        >>> digits = biotorch.data.load(biotorch.data.DataConfig(dataset="digits"), seed=0)
        >>> config = biotorch.training.TrainingConfig(
        ...     hyperparameters={"epochs": 2, "batch_size": 64}, optimizer={"type": "Adam", "lr": 0.01}
        ... )
        >>> model = biotorch.models.fa.mlp(in_features=64, width=32)
        >>> history = biotorch.training.fit(model, digits, config, nn.functional.cross_entropy, seed=0)
        >>> history[0]["validation"]["error"] > history[-1]["validation"]["error"]
        True
    """

    class Told(Observer):
        def on_epoch(self, record: Record) -> None:
            on_epoch(record)

    trainer = Trainer(model, data, config, loss, seed, observer=Told())
    trainer.run()
    model.load_state_dict(trainer.best["model"])
    return trainer.history
