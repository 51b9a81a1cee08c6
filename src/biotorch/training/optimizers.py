"""Optimizers of `torch.optim`, by name, with their own arguments."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pydantic import ConfigDict, Field, model_validator
from torch import Tensor, nn

from biotorch._sections import Section
from biotorch.errors import SectionError
from biotorch.manhattan import batch_manhattan
from biotorch.training.arguments import attempt, checked, class_named, classes, completed, parameters, require


class FeedbackGroup(NamedTuple):
    """Feedback weights that get a parameter group of their own in the optimizer."""

    parameters: Sequence[nn.Parameter]
    rate: float | None = None
    """Learning rate of the group when the optimizer has the configuration's `lr`; None: the same rate."""
    decay: float | None = None
    """Weight decay of the group; None: the optimizer's."""


class OptimizerConfig(Section):
    """`training.optimizer`: a class of `torch.optim` and its arguments, checked against its signature.

    Examples:
        >>> config = biotorch.training.OptimizerConfig(type="SGD", lr=0.1, momentum=0.9)
        >>> type(config.build(nn.Linear(4, 3).parameters())).__name__
        'SGD'
    """

    model_config = ConfigDict(extra="allow")

    type: str
    """A class of torch.optim, such as SGD or Adam."""
    lr: float = Field(gt=0)
    """Learning rate."""
    batch_manhattan: bool = False
    """Replace each gradient by its sign before the optimizer's step (Liao et al. 2016)."""

    @model_validator(mode="before")
    @classmethod
    def _arguments_exist(cls, values: Any) -> Any:
        """Check the arguments before the fields, so that one error lists all problems."""
        if isinstance(values, dict):
            require(values, _optimizer_class, ("type", "lr"), ("params", "lr"), ("batch_manhattan",), ("momentum",))
        return values

    @model_validator(mode="after")
    def _values_work(self) -> OptimizerConfig:
        kind = _optimizer_class(self.type)
        if "momentum" in (self.model_extra or {}) and "momentum" not in parameters(kind, ()):
            warnings.warn(f"{kind.__name__} takes no momentum: ignored", stacklevel=2)  # as in the paper's files
        if kind.__name__ not in _TAKES_MATRICES_ALONE:
            attempt(self._try)
        return self

    @classmethod
    def completed(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        found = super().completed(values)
        try:
            kind = _optimizer_class(str(found.get("type")))
        except SectionError:
            return found
        own = {key: found.pop(key) for key in ("type", "lr", "batch_manhattan") if key in found}
        if "momentum" not in parameters(kind, ()):
            found.pop("momentum", None)
        return own | {"type": kind.__name__} | completed(kind, found, given=("params", "lr"))

    @property
    def decays(self) -> bool:
        """Whether the optimizer has a weight decay."""
        return "weight_decay" in parameters(_optimizer_class(self.type), ())

    def build(
        self, weights: Iterable[nn.Parameter], feedback: Sequence[FeedbackGroup] = (), lr: float | None = None
    ) -> torch.optim.Optimizer:
        """Create the optimizer for `weights`. Its first group holds the weights that are in no group of `feedback`.

        Args:
            weights: parameters to train; feedback weights that are not among them are left out.
            feedback: groups of feedback weights.
            lr: learning rate to use instead of the configuration's; the rates of `feedback` change by the same factor.

        Raises:
            SectionError: a group has a weight decay, but the optimizer takes none.
        """
        kind = _optimizer_class(self.type)
        if not self.decays and any(group.decay is not None for group in feedback):
            raise SectionError(
                {"": f"{kind.__name__} takes no weight_decay, so feedback_decay cannot be used: leave it out"}
            )
        valid = parameters(kind, given=("params", "lr"))
        named = {key: value for key, value in (self.model_extra or {}).items() if key in valid}
        arguments = checked(kind, named, given=("params", "lr"))
        rate = self.lr if lr is None else lr
        optimizer: torch.optim.Optimizer = kind(self._groups(list(weights), feedback, rate), lr=rate, **arguments)
        return batch_manhattan(optimizer) if self.batch_manhattan else optimizer

    def _groups(self, weights: list[nn.Parameter], feedback: Sequence[FeedbackGroup], rate: float) -> list[Any]:
        if not feedback:
            return weights  # as one group
        owners = {id(parameter): group for group in feedback for parameter in group.parameters}
        groups: list[dict[str, Any]] = [{"params": [each for each in weights if id(each) not in owners]}]
        for group in feedback:
            own = [each for each in weights if owners.get(id(each)) is group]
            settings = {
                "lr": None if group.rate is None else group.rate * (rate / self.lr),
                "weight_decay": group.decay,
            }
            if own:
                groups.append({"params": own, **{key: value for key, value in settings.items() if value is not None}})
        return groups

    @property
    def state_per_weight(self) -> float:
        """Numbers that the optimizer keeps for each weight: 0 for plain SGD, 1 with momentum, 2 for Adam."""
        values = [value for each in self._try().state.values() for value in each.values()]
        return sum(value.numel() for value in values if isinstance(value, Tensor) and value.ndim) / 4

    def _try(self) -> torch.optim.Optimizer:
        """Make a step with a matrix of 2 x 2, and return the optimizer."""
        weight = nn.Parameter(torch.zeros(2, 2))
        weight.grad = torch.zeros(2, 2)
        optimizer = self.build([weight])
        optimizer.step()
        return optimizer


#: Optimizers of matrices only. A network with biases is refused later, when the optimizer is built for it.
_TAKES_MATRICES_ALONE = ("Muon",)


_OPTIMIZERS = classes(torch.optim, torch.optim.Optimizer)

#: Optimizers that cannot be used here, with the reason.
_NO_OPTIMIZER = {
    "LBFGS": "it evaluates the loss several times per step",
    "SparseAdam": "it takes only sparse gradients, but these networks have dense ones",
}


def _optimizer_class(name: str) -> Any:
    return class_named("optimizer", "type", name, _OPTIMIZERS, _NO_OPTIMIZER)


def optimizer_names() -> list[str]:
    """Names of the optimizers that a configuration can use."""
    return sorted(_OPTIMIZERS.keys() - _NO_OPTIMIZER.keys())
