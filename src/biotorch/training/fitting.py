"""Training in one call, for a notebook."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from biotorch.data import Dataset
from biotorch.training.loop import Trainer
from biotorch.training.settings import TrainingConfig
from biotorch.training.state import Observer, Record


def fit(
    model: nn.Module,
    data: Dataset,
    config: TrainingConfig,
    loss: Callable[[Tensor, Tensor], Tensor],
    seed: int,
    on_epoch: Callable[[Record], None] = lambda record: None,
) -> list[Record]:
    """Train `model` in place on the CPU and leave it at its best epoch on validation; returns the records.

    The short form of `Trainer`, which has the errors that it raises.
    """

    class Told(Observer):
        def on_epoch(self, record: Record) -> None:
            on_epoch(record)

    trainer = Trainer(model, data, config, loss, seed, observer=Told())
    trainer.run()
    model.load_state_dict(trainer.best["model"])
    return trainer.history
