"""Optimizers and learning-rate schedules of `torch.optim`, by name, with their own arguments."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from pydantic import ConfigDict, Field, model_validator
from torch import nn

from biotorch.frozen import Section
from biotorch.names import unknown


class OptimizerConfig(Section):
    """`training.optimizer`: a class of `torch.optim` and its arguments, checked against its signature."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: str
    lr: float = Field(gt=0)

    @model_validator(mode="after")
    def _arguments_exist(self) -> OptimizerConfig:
        kind = _optimizer_class(self.type)
        unknown_ones = _check(kind, self.model_extra or {}, ignored=("momentum",))
        if unknown_ones:  # the paper's files give Adam a momentum
            warnings.warn(f"{kind.__name__} takes no {', '.join(unknown_ones)}: ignored", stacklevel=2)
        _attempt(lambda: self.build([nn.Parameter(torch.zeros(1))]))
        return self

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer over `parameters`."""
        kind = _optimizer_class(self.type)
        arguments = {name: value for name, value in (self.model_extra or {}).items() if name in _arguments(kind)}
        optimizer: torch.optim.Optimizer = kind(parameters, lr=self.lr, **arguments)
        return optimizer


class SchedulerConfig(Section):
    """`training.lr_scheduler`: a class of `torch.optim.lr_scheduler`, stepped once per epoch."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: str

    @model_validator(mode="after")
    def _arguments_exist(self) -> SchedulerConfig:
        _check(_scheduler_class(self.type), self.model_extra or {})
        _attempt(lambda: self.build(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)))
        return self

    def build(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        """The schedule of `optimizer`."""
        kind = _scheduler_class(self.type)
        scheduler: torch.optim.lr_scheduler.LRScheduler = kind(optimizer, **(self.model_extra or {}))
        return scheduler


def _optimizer_class(name: str) -> Any:
    return _class_named("optimizer", name, torch.optim, torch.optim.Optimizer)


def _scheduler_class(name: str) -> Any:
    return _class_named("lr_scheduler", name, torch.optim.lr_scheduler, torch.optim.lr_scheduler.LRScheduler)


def _class_named(what: str, name: str, module: Any, base: type) -> Any:
    """A class of `module`, whatever the spelling: `RMSProp`, `multistep_lr`."""
    classes = {key: value for key, value in vars(module).items() if inspect.isclass(value) and issubclass(value, base)}
    for key, value in classes.items():
        if key.lower() == name.lower().replace("_", "") and value is not base:
            return value
    raise unknown(what, name, sorted(key for key, value in classes.items() if value is not base))


def _attempt(build: Callable[[], object]) -> None:
    """What torch says of an argument's value belongs to the configuration, not into the first epoch."""
    try:
        build()
    except TypeError as error:
        raise ValueError(str(error)) from error


def _arguments(kind: Any) -> list[str]:
    return [name for name in inspect.signature(kind).parameters if name not in ("params", "optimizer", "lr")]


def _check(kind: Any, arguments: dict[str, Any], ignored: tuple[str, ...] = ()) -> list[str]:
    """The arguments that `kind` does not take; raises ValueError unless each is one of `ignored`."""
    strange = [name for name in arguments if name not in _arguments(kind)]
    for name in strange:
        if name not in ignored:
            raise unknown(f"argument of {kind.__name__}", name, _arguments(kind))
    return strange
