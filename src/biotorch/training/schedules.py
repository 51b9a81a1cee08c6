"""Learning-rate schedules of `torch.optim.lr_scheduler`, by name, with their own arguments."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import ConfigDict, model_validator
from torch import nn
from torch.optim import lr_scheduler

from biotorch._sections import Section
from biotorch.errors import SectionError
from biotorch.training.arguments import attempt, checked, class_named, classes, require


class SchedulerConfig(Section):
    """`training.lr_scheduler`: a class of `torch.optim.lr_scheduler` and its arguments."""

    model_config = ConfigDict(extra="allow")

    type: str
    """A class of torch.optim.lr_scheduler, such as MultiStepLR or CosineAnnealingLR."""
    interval: Literal["epoch", "update"] | None = None
    """When it steps. Default: after each epoch; OneCycleLR and CyclicLR after each update."""

    @model_validator(mode="before")
    @classmethod
    def _arguments_exist(cls, values: Any) -> Any:
        if isinstance(values, dict):
            require(values, _scheduler_class, ("type",), given=("optimizer",), own=("interval",))
        return values

    @model_validator(mode="after")
    def _values_work(self) -> SchedulerConfig:
        if self.per_update and _scheduler_class(self.type) is lr_scheduler.ReduceLROnPlateau:
            raise SectionError({"interval": "ReduceLROnPlateau follows the validation error, known once per epoch"})
        negative = {
            name: f"not below 0, got {value}"
            for name, value in (self.model_extra or {}).items()
            if isinstance(value, int) and value < 0 and name != "last_epoch"
        }
        if negative:
            raise SectionError(negative)
        attempt(self._try)
        return self

    @property
    def per_update(self) -> bool:
        """Whether it steps after each update rather than each epoch."""
        if self.interval is not None:
            return self.interval == "update"
        return _scheduler_class(self.type) in (lr_scheduler.OneCycleLR, lr_scheduler.CyclicLR)

    def build(self, optimizer: torch.optim.Optimizer, updates: int) -> lr_scheduler.LRScheduler:
        """The schedule of `optimizer` over a training of `updates` updates, which OneCycleLR wants to know."""
        kind = _scheduler_class(self.type)
        arguments = checked(kind, self.model_extra or {}, given=("optimizer",))
        if kind is lr_scheduler.OneCycleLR and not {"total_steps", "epochs", "steps_per_epoch"} & arguments.keys():
            arguments["total_steps"] = updates
        scheduler: lr_scheduler.LRScheduler = kind(optimizer, **arguments)
        return scheduler

    def _try(self) -> None:
        """Some wrong values are only met on the way."""
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
        schedule = Schedule(optimizer, self, epochs=1, updates_per_epoch=1)
        for _ in range(3):
            optimizer.step()
            if isinstance(schedule.main, lr_scheduler.OneCycleLR):
                break  # ends when it is told to
            schedule.after_update()
            schedule.after_epoch(error=50.0)
            if optimizer.param_groups[0]["lr"] < 0:
                raise ValueError("the learning rate becomes negative")


class Schedule:
    """The learning rate over a training: a scheduler of torch, and linear warm-up on top of what it says.

    The scheduler sees the optimizer's first group alone. The rates of further groups, of feedback weights, keep the
    ratio to the first that they start with, and everything else that it changes (momentum) is theirs, too.

    Args:
        optimizer: whose rates are set.
        config: the scheduler, if there is one.
        epochs, updates_per_epoch: length of the training.
        warmup: updates over which the rate rises from `1 / warmup` of what it would be to all of it.

    Raises:
        SectionError: a scheduler that the optimizer cannot have, or a OneCycleLR that ends before the training does.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        config: SchedulerConfig | None,
        epochs: int,
        updates_per_epoch: int,
        warmup: int = 0,
    ) -> None:
        self.optimizer, self.warmup, self.updates = optimizer, warmup, 0
        self.per_update = config is not None and config.per_update
        self._start = [group["lr"] for group in optimizer.param_groups]
        try:
            with self._first_group_alone():
                self.main = config.build(optimizer, updates=epochs * updates_per_epoch) if config else None
        except (ValueError, TypeError, KeyError) as error:  # it does not go with this optimizer
            raise SectionError({"lr_scheduler": str(error)}) from error
        steps = epochs * (updates_per_epoch if self.per_update else 1)
        if isinstance(self.main, lr_scheduler.OneCycleLR) and self.main.total_steps < steps:
            raise SectionError(
                {
                    "lr_scheduler": f"OneCycleLR ends after {self.main.total_steps} steps, the training takes {steps}: "
                    "leave out total_steps, epochs and steps_per_epoch, and it gets the right number"
                }
            )
        #: The rate without warm-up.
        self.full = self._rate
        self._warm_up()

    def after_update(self) -> None:
        """Call once per update of the weights."""
        self.updates += 1
        if self.per_update:
            self._step()
        self._warm_up()

    def after_epoch(self, error: float) -> None:
        """Call once per epoch; `error` is that on validation, which ReduceLROnPlateau follows."""
        if self.main is not None and not self.per_update:
            self._step(error)
            self._warm_up()

    def _step(self, error: float = math.nan) -> None:
        """Let the scheduler go on from the rates that it has set itself."""
        assert self.main is not None
        self._rate = self.full
        with self._first_group_alone():
            if isinstance(self.main, lr_scheduler.ReduceLROnPlateau):
                self.main.step(error)
            else:
                self.main.step()
        self.full = self._rate

    def _warm_up(self) -> None:
        if self.updates < self.warmup:
            self._rate = self.full * (self.updates + 1) / self.warmup
        elif self.updates == self.warmup:
            self._rate = self.full

    @property
    def _rate(self) -> float:
        rate: float = self.optimizer.param_groups[0]["lr"]
        return rate

    @_rate.setter
    def _rate(self, rate: float) -> None:
        self.optimizer.param_groups[0]["lr"] = rate
        self._keep_ratios()

    @contextlib.contextmanager
    def _first_group_alone(self) -> Iterator[None]:
        """Schedulers want a value per group, or set one rate for all."""
        groups = self.optimizer.param_groups
        others = groups[1:]
        del groups[1:]
        try:
            yield
        finally:
            groups.extend(others)
            self._keep_ratios()

    def _keep_ratios(self) -> None:
        first, *others = self.optimizer.param_groups
        for group, start in zip(others, self._start[1:], strict=True):
            own = {"params", "lr", "weight_decay"}
            group.update({key: value for key, value in first.items() if key in group and key not in own})
            group["lr"] = start * (first["lr"] / self._start[0])

    def state_dict(self) -> dict[str, Any]:
        """Plain values: position and rate."""
        main = None if self.main is None else self.main.state_dict()
        return {"main": main, "updates": self.updates, "full": [self.full]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken; the rates that hold are in the optimizer's state."""
        if self.main is not None:
            self.main.load_state_dict(state["main"])
        self.updates, (self.full,) = state["updates"], state["full"]


_SCHEDULERS = classes(lr_scheduler, lr_scheduler.LRScheduler)

#: Those that cannot be used here, and why.
_NO_SCHEDULER = dict.fromkeys(
    ("LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler"),
    "it needs a function or other schedulers, which a configuration cannot hold",
)


def _scheduler_class(name: str) -> Any:
    return class_named("lr_scheduler", "type", name, _SCHEDULERS, _NO_SCHEDULER)


def scheduler_names() -> list[str]:
    """The schedulers that a configuration can name."""
    return sorted(_SCHEDULERS.keys() - _NO_SCHEDULER.keys())
