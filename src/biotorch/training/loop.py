"""The training loop."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from biotorch import metrics, seeding
from biotorch.data import Dataset, Split
from biotorch.training.settings import MetricsConfig, TrainingConfig

#: What one epoch measured; the entry of epoch 0 is the network before training.
Record = dict[str, Any]


def fit(
    model: nn.Module,
    data: Dataset,
    config: TrainingConfig,
    loss: Callable[[Tensor, Tensor], Tensor],
    seed: int,
    on_epoch: Callable[[Record], None] = lambda record: None,
) -> list[Record]:
    """Train `model` in place and leave it at its best epoch on validation; returns one record per epoch.

    All randomness of the data order is drawn from `seed`.

    Raises:
        FloatingPointError: the training loss is not finite, with epoch and step.
    """
    optimizer = config.optimizer.build(p for p in model.parameters() if p.requires_grad)
    scheduler = config.lr_scheduler.build(optimizer) if config.lr_scheduler else None
    order = seeding.generator(seeding.derive(seed, "data order"))
    size = config.hyperparameters.batch_size
    probe = next(data.train.batches(size))

    history: list[Record] = []
    best = (math.inf, copy.deepcopy(model.state_dict()))
    for epoch in range(config.hyperparameters.epochs + 1):
        start = time.perf_counter()
        record: Record = {"epoch": epoch, "learning_rate": optimizer.param_groups[0]["lr"]}
        if epoch > 0:
            record["train"] = _train_epoch(model, data.train.batches(size, order), optimizer, loss, epoch)
            if scheduler is not None:
                scheduler.step()
        record["seconds"] = time.perf_counter() - start
        record["validation"] = evaluate(model, data.validation, loss, config.metrics.top_k)
        record |= _alignment(model, loss, probe, config.metrics)
        history.append(record)
        on_epoch(record)
        if epoch > 0 and record["validation"]["error"] < best[0]:
            best = (record["validation"]["error"], copy.deepcopy(model.state_dict()))
    model.load_state_dict(best[1])
    return history


def _train_epoch(
    model: nn.Module, batches: Any, optimizer: torch.optim.Optimizer, loss: Callable[..., Tensor], epoch: int
) -> dict[str, float]:
    model.train()
    total, wrong, count = 0.0, 0, 0
    for step, (images, labels) in enumerate(batches):
        optimizer.zero_grad()
        outputs = model(images)
        value = loss(outputs, labels)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        mean = value.item()
        if not math.isfinite(mean):
            raise FloatingPointError(
                f"the loss is {mean} at epoch {epoch}, step {step}: lower training.optimizer.lr, "
                "or set model.mode.options.gradient_clip"
            )
        total += mean * len(labels)
        wrong += int((outputs.argmax(1) != labels).sum())
        count += len(labels)
    return {"loss": total / count, "error": 100 * wrong / count}


@torch.no_grad()
def evaluate(
    model: nn.Module, split: Split, loss: Callable[[Tensor, Tensor], Tensor], top_k: int = 1, batch_size: int = 1000
) -> dict[str, float]:
    """Mean loss, top-1 error (%), and top-k error (%) if `top_k` > 1, in eval mode; the mode is restored."""
    training = model.training
    model.eval()
    total, wrong, missed = 0.0, 0, 0
    for images, labels in split.batches(batch_size):
        outputs = model(images)
        total += float(loss(outputs, labels)) * len(labels)
        wrong += int((outputs.argmax(1) != labels).sum())
        if top_k > 1:
            ranked = outputs.topk(min(top_k, outputs.shape[1]), 1).indices
            missed += int((ranked != labels[:, None]).all(1).sum())
    model.train(training)
    result = {"loss": total / len(split), "error": 100 * wrong / len(split)}
    return result | {f"top_{top_k}_error": 100 * missed / len(split)} if top_k > 1 else result


def _alignment(
    model: nn.Module, loss: Callable[..., Tensor], probe: tuple[Tensor, Tensor], config: MetricsConfig
) -> Record:
    record: Record = {}
    if config.weight_alignment:
        record["angles"] = metrics.alignment_angles(model)
    if config.weight_ratio:
        record["norm_ratios"] = metrics.norm_ratios(model)
    if config.gradient_alignment:
        record["gradient_angles"] = metrics.gradient_alignment(model, loss, *probe)
    return record
