"""Optimizers and learning-rate schedules of `torch.optim`, by name, with their own arguments."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from pydantic import ConfigDict, Field, model_validator
from torch import nn
from torch.optim import lr_scheduler

from biotorch.frozen import Section, SectionError
from biotorch.manhattan import batch_manhattan
from biotorch.training.arguments import attempt, checked, class_named, missing, parameters


class OptimizerConfig(Section):
    """`training.optimizer`: a class of `torch.optim` and its arguments, checked against its signature."""

    model_config = ConfigDict(extra="allow")

    type: str
    """A class of torch.optim, such as SGD or Adam."""
    lr: float = Field(gt=0)
    """Learning rate."""
    batch_manhattan: bool = False
    """Hand it the sign of each gradient in the gradient's place (Liao et al. 2016)."""

    @model_validator(mode="before")
    @classmethod
    def _arguments_exist(cls, values: Any) -> Any:
        """Before the fields are looked at, so that all problems are told at once."""
        if isinstance(values, dict):
            _require(values, _optimizer_class, ("type", "lr"), ("params", "lr"), ("batch_manhattan",), ("momentum",))
        return values

    @model_validator(mode="after")
    def _values_work(self) -> OptimizerConfig:
        kind = _optimizer_class(self.type)
        if "momentum" in (self.model_extra or {}) and "momentum" not in parameters(kind, ()):
            warnings.warn(f"{kind.__name__} takes no momentum: ignored", stacklevel=2)  # the paper's files give it one
        if kind.__name__ not in _TAKES_MATRICES_ALONE:
            attempt(self._try)
        return self

    def build(self, weights: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer over `weights`."""
        kind = _optimizer_class(self.type)
        valid = parameters(kind, given=("params", "lr"))
        named = {key: value for key, value in (self.model_extra or {}).items() if key in valid}
        arguments = checked(kind, named, given=("params", "lr"))
        optimizer: torch.optim.Optimizer = kind(weights, lr=self.lr, **arguments)
        return batch_manhattan(optimizer) if self.batch_manhattan else optimizer

    def _try(self) -> None:
        weight = nn.Parameter(torch.zeros(2, 2))
        weight.grad = torch.zeros(2, 2)
        self.build([weight]).step()


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
            _require(values, _scheduler_class, ("type",), given=("optimizer",), own=("interval",))
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
        try:
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
        #: The rates without warm-up.
        self.full = self._rates
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
        self._rates = self.full
        if isinstance(self.main, lr_scheduler.ReduceLROnPlateau):
            self.main.step(error)
        else:
            self.main.step()
        self.full = self._rates

    def _warm_up(self) -> None:
        if self.updates < self.warmup:
            self._rates = [rate * (self.updates + 1) / self.warmup for rate in self.full]
        elif self.updates == self.warmup:
            self._rates = self.full

    @property
    def _rates(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]

    @_rates.setter
    def _rates(self, rates: list[float]) -> None:
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def state_dict(self) -> dict[str, Any]:
        """Plain values: position and rates."""
        main = None if self.main is None else self.main.state_dict()
        return {"main": main, "updates": self.updates, "full": self.full}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken; the rates themselves are in the optimizer's state."""
        if self.main is not None:
            self.main.load_state_dict(state["main"])
        self.updates, self.full = state["updates"], state["full"]


_TAKES_MATRICES_ALONE = ("Muon",)  # which a network with biases is not; told when the optimizer meets the network


def _classes(module: Any, base: type) -> dict[str, type]:
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, base) and value is not base and not name.startswith("_")
    }


_OPTIMIZERS = _classes(torch.optim, torch.optim.Optimizer)
_SCHEDULERS = _classes(lr_scheduler, lr_scheduler.LRScheduler)

#: Those that cannot be used here, and why.
_NO_OPTIMIZER = {
    "LBFGS": "it evaluates the loss several times per step",
    "SparseAdam": "it takes sparse gradients alone, and networks here have dense ones",
}
_NO_SCHEDULER = dict.fromkeys(
    ("LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler"),
    "it needs a function or other schedulers, which a configuration cannot hold",
)


def _require(
    values: dict[str, Any],
    find: Callable[[str], Any],
    needed: tuple[str, ...],
    given: tuple[str, ...],
    own: tuple[str, ...] = (),
    ignored: tuple[str, ...] = (),
) -> None:
    """Raise a SectionError that lists missing keys, an unknown type, and arguments that the type does not take."""
    problems = missing(values, *needed)
    if isinstance(values.get("type"), str):
        try:
            kind = find(values["type"])
            valid = parameters(kind, given)
            skipped = {*needed, *own, *(name for name in ignored if name not in valid)}
            checked(kind, {key: value for key, value in values.items() if key not in skipped}, given, (*needed, *own))
        except SectionError as error:
            problems |= error.problems
    if problems:
        raise SectionError(problems)


def _optimizer_class(name: str) -> Any:
    return class_named("optimizer", "type", name, _OPTIMIZERS, _NO_OPTIMIZER)


def _scheduler_class(name: str) -> Any:
    return class_named("lr_scheduler", "type", name, _SCHEDULERS, _NO_SCHEDULER)


def optimizer_names() -> list[str]:
    """The optimizers that a configuration can name."""
    return sorted(_OPTIMIZERS.keys() - _NO_OPTIMIZER.keys())


def scheduler_names() -> list[str]:
    """The schedulers that a configuration can name."""
    return sorted(_SCHEDULERS.keys() - _NO_SCHEDULER.keys())
