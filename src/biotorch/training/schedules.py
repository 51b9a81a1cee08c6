"""Learning-rate schedules of `torch.optim.lr_scheduler`, by name, with their own arguments."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from pydantic import ConfigDict, model_validator
from torch import nn
from torch.optim import lr_scheduler

from biotorch._sections import Section
from biotorch.errors import SectionError
from biotorch.training.arguments import attempt, checked, class_named, classes, completed, require


class SchedulerConfig(Section):
    """`training.lr_scheduler`: a class of `torch.optim.lr_scheduler` and its arguments.

    Examples:
        >>> config = biotorch.training.SchedulerConfig(type="MultiStepLR", milestones=[10, 20], gamma=0.1)
        >>> config.per_update
        False
    """

    model_config = ConfigDict(extra="allow")

    type: str
    """A class of torch.optim.lr_scheduler, such as MultiStepLR or CosineAnnealingLR."""
    interval: Literal["epoch", "update"] | None = None
    """When the scheduler steps; default: after each epoch, but OneCycleLR and CyclicLR after each update."""

    @model_validator(mode="before")
    @classmethod
    def _arguments_exist(cls, values: Any) -> Any:
        if isinstance(values, dict):
            require(values, _scheduler_class, ("type",), given=("optimizer",), own=("interval",))
        return values

    @model_validator(mode="after")
    def _values_work(self) -> SchedulerConfig:
        if self.per_update and _scheduler_class(self.type) is lr_scheduler.ReduceLROnPlateau:
            raise SectionError(
                {"interval": "ReduceLROnPlateau follows a figure of the validation set, which is known once per epoch"}
            )
        negative = {
            name: f"must be at least 0, got {value}"
            for name, value in (self.model_extra or {}).items()
            if isinstance(value, int) and value < 0 and name != "last_epoch"
        }
        if negative:
            raise SectionError(negative)
        attempt(self._try)
        return self

    @classmethod
    def completed(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        found = super().completed(values)
        try:
            kind = _scheduler_class(str(found.get("type")))
        except SectionError:
            return found
        interval = found.pop("interval") or ("update" if kind in _PER_UPDATE else "epoch")
        own = {"type": kind.__name__, "interval": interval}
        return own | completed(kind, {key: each for key, each in found.items() if key != "type"}, given=("optimizer",))

    @property
    def per_update(self) -> bool:
        """Whether the scheduler steps after each update, not after each epoch."""
        if self.interval is not None:
            return self.interval == "update"
        return _scheduler_class(self.type) in _PER_UPDATE

    def build(self, optimizer: torch.optim.Optimizer, updates: int) -> lr_scheduler.LRScheduler:
        """Create the scheduler of `optimizer`; `updates` is the length of the training, which OneCycleLR needs."""
        kind = _scheduler_class(self.type)
        arguments = checked(kind, self.model_extra or {}, given=("optimizer",))
        if kind is lr_scheduler.OneCycleLR and not {"total_steps", "epochs", "steps_per_epoch"} & arguments.keys():
            arguments["total_steps"] = updates
        scheduler: lr_scheduler.LRScheduler = kind(optimizer, **arguments)
        return scheduler

    def _try(self) -> None:
        """Take a few steps, because schedulers refuse some wrong values only then."""
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
        schedule = Schedule(optimizer, self, epochs=1, updates_per_epoch=1)
        for _ in range(3):
            optimizer.step()
            if isinstance(schedule.main, lr_scheduler.OneCycleLR):
                break  # a further step would exceed its length
            schedule.after_update()
            schedule.after_epoch(50.0)
            if optimizer.param_groups[0]["lr"] < 0:
                raise ValueError("the learning rate becomes negative")


class Schedule:
    """The learning rate during a training: a scheduler of torch, whose rate a linear warm-up multiplies at the start.

    The scheduler sees only the first group of the optimizer. The rates of further groups (of feedback weights) keep
    their initial ratio to the rate of the first group. Other settings that the scheduler changes, such as momentum,
    are copied to them.

    Args:
        optimizer: the optimizer whose rates are set.
        config: the scheduler, if there is one.
        epochs, updates_per_epoch: length of the training.
        warmup: number of updates during which the rate rises from `1 / warmup` of the scheduler's rate to all of it.

    Raises:
        SectionError: the scheduler does not go with the optimizer, or a OneCycleLR ends before the training.
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
        except (ValueError, TypeError, KeyError) as error:  # the scheduler does not go with this optimizer
            raise SectionError({"lr_scheduler": str(error)}) from error
        steps = epochs * (updates_per_epoch if self.per_update else 1)
        if isinstance(self.main, lr_scheduler.OneCycleLR) and self.main.total_steps < steps:
            raise SectionError(
                {
                    "lr_scheduler": f"OneCycleLR ends after {self.main.total_steps} steps, but the training takes "
                    f"{steps}: leave out total_steps, epochs and steps_per_epoch to have the right number set"
                }
            )
        #: The rate without warm-up.
        self.full = self._rate
        self._warm_up()

    def after_update(self) -> None:
        """Set the next rate; to be called once after each update of the weights."""
        self.updates += 1
        if self.per_update:
            self._step()
        self._warm_up()

    def after_epoch(self, value: float) -> None:
        """Set the next rate; to be called once after each epoch.

        ReduceLROnPlateau follows `value`, the figure of the validation set that the run is judged by.
        """
        if self.main is not None and not self.per_update:
            self._step(value)
            self._warm_up()

    def _step(self, value: float = math.nan) -> None:
        """Step the scheduler, from the rate without warm-up that it has set itself."""
        assert self.main is not None
        self._rate = self.full
        with self._first_group_alone():
            if isinstance(self.main, lr_scheduler.ReduceLROnPlateau):
                self.main.step(value)
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
        """Hide all groups but the first: schedulers take one value per group, or set one rate for all groups."""
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
        """Position in the schedule and rate without warm-up, as plain values."""
        main = None if self.main is None else self.main.state_dict()
        return {"main": main, "updates": self.updates, "full": [self.full]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the position of `state`. The current rates are part of the optimizer's state."""
        if self.main is not None:
            self.main.load_state_dict(state["main"])
        self.updates, (self.full,) = state["updates"], state["full"]


#: Schedulers that step after each update, unless the configuration says otherwise.
_PER_UPDATE = (lr_scheduler.OneCycleLR, lr_scheduler.CyclicLR)

_SCHEDULERS = classes(lr_scheduler, lr_scheduler.LRScheduler)

#: Schedulers that cannot be used here, with the reason.
_NO_SCHEDULER = dict.fromkeys(
    ("LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler"),
    "it needs a function or other schedulers, which a configuration cannot hold",
)


def _scheduler_class(name: str) -> Any:
    return class_named("lr_scheduler", "type", name, _SCHEDULERS, _NO_SCHEDULER)


def scheduler_names() -> list[str]:
    """Names of the schedulers that a configuration can use."""
    return sorted(_SCHEDULERS.keys() - _NO_SCHEDULER.keys())
