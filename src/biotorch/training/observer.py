"""What a training tells and asks while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from biotorch.training.loop import Trainer

#: What one epoch measured; the entry of epoch 0 is the network before training.
Record = dict[str, Any]


class Observer:
    """What a training tells and asks; every method may be left as it is."""

    def on_noise(self, done: int, updates: int) -> None:
        """So many of the updates on noise before epoch one are done."""

    def on_update(self, trainer: Trainer) -> None:
        """The weights have been updated once more; `trainer.epoch`, `.step` and `.steps` say where it is."""

    def on_epoch(self, record: Record) -> None:
        """An epoch has been measured."""

    def save(self, trainer: Trainer) -> None:
        """A good moment for a checkpoint: of `trainer.state_dict()`, which all processes have to call."""

    def save_now(self) -> bool:
        """Whether it is time for a checkpoint in the middle of things."""
        return False

    def stop_now(self) -> bool:
        """Whether to save and stop (`Stopped` is raised)."""
        return False


class Stopped(Exception):  # noqa: N818 - no error: it was asked for
    """The observer asked to stop; the state has been saved."""
