"""Loss functions of `torch.nn` by name, the loss of a network's outputs, and targets for rules that need them."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ConfigDict, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from biotorch._sections import Section
from biotorch.data import Task
from biotorch.errors import SectionError
from biotorch.kernel import teaching
from biotorch.layers import FeedbackLayer
from biotorch.models.outputs import entries, main_output
from biotorch.rules import DirectRule
from biotorch.training.arguments import attempt, checked, class_named, completed

if TYPE_CHECKING:
    from lightning_fabric import Fabric


#: Losses by the kind of target that they take. Targets are made from labels (n,) for outputs (n, C).
_INDEX = ("CrossEntropyLoss", "NLLLoss", "MultiMarginLoss")
#: Distances between outputs and targets, which also take the numbers of a regression.
_DISTANCES = ("MSELoss", "L1Loss", "SmoothL1Loss", "HuberLoss")
_ONE_HOT = (
    *_DISTANCES,
    "BCEWithLogitsLoss",
    "BCELoss",
    "KLDivLoss",
    "MultiLabelSoftMarginLoss",
    "PoissonNLLLoss",
)
#: Losses whose mean over a batch divides by the sum of the weights of its labels, without labels of an ignored class.
_WEIGHTED_MEAN = ("CrossEntropyLoss", "NLLLoss")
_SIGNS = ("SoftMarginLoss",)  # one-hot, with -1 instead of 0


#: Arguments of early versions of torch, which `reduction` has replaced.
_OLD_NAMES = ("size_average", "reduce")


class LossConfig(Section):
    """`model.loss_function`: a loss of `torch.nn` and its arguments, checked against its signature.

    Classes are converted to the targets of the loss: class indices, one-hot rows (MSE, L1, BCE ...) or rows of signs.
    The numbers of a regression are targets as they are. The only reduction is the mean over the batch, and over the
    tokens of a text or the targets of a regression.

    Examples:
        >>> loss = biotorch.training.LossConfig(name="cross_entropy", label_smoothing=0.1).build()
        >>> round(loss(torch.zeros(2, 3), torch.tensor([0, 2])).item(), 4)
        1.0986
    """

    model_config = ConfigDict(extra="allow")

    name: str = "cross_entropy"
    """A loss of torch.nn, such as cross_entropy or mse. NLLLoss and KLDivLoss need log-probabilities as outputs. A
    regression takes mse, l1, smooth_l1 or huber."""

    @model_validator(mode="after")
    def _arguments_work(self) -> LossConfig:
        if (self.model_extra or {}).get("reduction", "mean") != "mean":
            raise SectionError({"reduction": "training always takes the mean over a batch: leave it out"})
        self._arguments()
        attempt(self._try)
        return self

    @classmethod
    def default(cls, task: Task) -> LossConfig:
        """Loss for a configuration that gives none: cross_entropy for classes, mse for numbers."""
        return cls(name="cross_entropy" if task == "classification" else "mse")

    @classmethod
    def completed(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        found = super().completed(values)
        try:
            kind = _loss_class(str(found.pop("name")))
        except SectionError:
            return dict(values)
        return {"name": kind.__name__, **completed(kind, found, given=_OLD_NAMES)}

    def build(self, task: Task = "classification") -> Loss:
        """Create the loss. Raises SectionError if it does not take the targets of the task."""
        kind = _loss_class(self.name)
        if task == "regression" and kind.__name__ not in _DISTANCES:
            text = f"{kind.__name__} compares outputs with classes, but the targets of the data are numbers: "
            raise SectionError({"name": f"{text}take mse, l1, smooth_l1 or huber"})
        return Loss(kind(**self._arguments()), _TARGETS[kind.__name__])

    def _arguments(self) -> dict[str, Any]:
        return checked(_loss_class(self.name), self.model_extra or {}, given=_OLD_NAMES)

    def _try(self) -> None:
        weights = [len(value) for value in self._arguments().values() if isinstance(value, Tensor)]
        self.build()(torch.full((2, max(weights, default=3)), 0.25), torch.tensor([0, 1]))


class Loss(nn.Module):
    """Loss of outputs (n, C) with labels (n,), or of (n, T, C) with (n, T), called as `loss(outputs, labels)`.

    It is the mean over all labels of the batch, a scalar. In a regression, labels are float targets (n, C).
    """

    def __init__(self, function: nn.Module, target: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.function, self.target = function, target

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if labels.is_floating_point():
            if outputs.shape != labels.shape:  # torch would broadcast them
                shapes = f"{tuple(outputs.shape)} do not match targets of shape {tuple(labels.shape)}"
                raise ValueError(f"outputs of shape {shapes}")
            return self.function(outputs, labels)  # type: ignore[no-any-return]
        outputs, labels = outputs.flatten(0, -2), labels.flatten()
        return self.function(outputs, self.target(labels, outputs.shape[1]))  # type: ignore[no-any-return]

    def size(self, labels: Tensor) -> float:
        """Divisor of the mean over a batch with these labels: `label_count`, or the sum of their weights.

        The mean over several batches is the mean of their means, weighted by their sizes.

        Args:
            labels: (n,) or (n, T), from 0 on; or (n, C) float.
        """
        if type(self.function).__name__ not in _WEIGHTED_MEAN:
            return label_count(labels)
        function: Any = self.function
        if function.weight is None and function.ignore_index < 0:
            return labels.numel()
        counted = labels != function.ignore_index
        weights = 1 if function.weight is None else function.weight[labels]
        return float((counted * weights).sum())


def label_count(labels: Tensor) -> int:
    """Number of labels in (n,) or (n, T) int64; the float targets of one example, a row of (n, C), count as one."""
    return len(labels) if labels.is_floating_point() else labels.numel()


def _index(labels: Tensor, classes: int) -> Tensor:
    return labels


def _one_hot(labels: Tensor, classes: int) -> Tensor:
    return F.one_hot(labels, classes).float()


def _signs(labels: Tensor, classes: int) -> Tensor:
    return 2 * _one_hot(labels, classes) - 1


_TARGETS = dict.fromkeys(_INDEX, _index) | dict.fromkeys(_ONE_HOT, _one_hot) | dict.fromkeys(_SIGNS, _signs)


def loss_names() -> list[str]:
    """The losses that a configuration can name."""
    return sorted(_TARGETS)


def _loss_class(name: str) -> Any:
    losses = {key: kind for key, kind in vars(nn).items() if inspect.isclass(kind) and key.endswith("Loss")}
    excuses = {key: "it does not compare outputs with class labels" for key in losses if key not in _TARGETS}
    return class_named("loss", "name", name, losses, excuses)


#: Weight of the loss of each auxiliary head (Szegedy et al. 2015, section 5); the main output has weight 1.
AUXILIARY_WEIGHT = 0.3


def training_loss(loss: Callable[[Tensor, Tensor], Tensor], outputs: Any, labels: Tensor) -> Tensor:
    """Training loss: the loss of the main output plus `AUXILIARY_WEIGHT` times the loss of each auxiliary head.

    Auxiliary heads are the entries `aux_logits`, `aux_logits1` ... of the outputs.

    Raises:
        TypeError: `main_output` does not know the kind of outputs.

    Examples:
        >>> outputs, labels = {"logits": torch.zeros(2, 3), "aux_logits": torch.zeros(2, 3)}, torch.tensor([0, 2])
        >>> round(biotorch.training.training_loss(nn.functional.cross_entropy, outputs, labels).item(), 4)
        1.4282
    """
    total = loss(main_output(outputs), labels)
    for name, value in entries(outputs).items():
        if name.startswith("aux_logits") and value is not None:
            total = total + AUXILIARY_WEIGHT * loss(value, labels)
    return total


class Teacher:
    """Passes the targets to a network if one of its rules sends something other than the error.

    Targets (`drtp`) and signs (`sdfa`) do not scale with the loss, so they are multiplied by the same factors as the
    training loss.
    """

    def __init__(self, model: nn.Module, fabric: Fabric) -> None:
        self.fabric = fabric
        self._wanted = any(
            isinstance(each.rule, DirectRule) and each.rule.has_signal()
            for each in model.modules()
            if isinstance(each, FeedbackLayer)
        )

    def tells(self, labels: Tensor, scale: float) -> contextlib.AbstractContextManager[None]:
        """Context for a forward pass; `scale` is the factor of each label in the loss, without any loss scaler."""
        if not self._wanted:
            return contextlib.nullcontext()
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        return teaching.targets(labels, scale, loss_scale=1.0 if scaler is None else scaler.get_scale())
