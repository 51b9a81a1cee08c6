"""Telling the output layer its targets during training, for the rules that send them backwards."""

from __future__ import annotations

import contextlib

from lightning_fabric import Fabric
from torch import Tensor, nn

from biotorch import teaching
from biotorch.layers import FeedbackLayer
from biotorch.rules import DirectRule


class Teacher:
    """Gives a network its targets, where one of its rules sends anything but the error.

    A target or a sign has no size of its own (`drtp`, `sdfa`): it gets the factors by which the training multiplies
    its loss.
    """

    def __init__(self, model: nn.Module, fabric: Fabric) -> None:
        self.fabric = fabric
        self._wanted = any(
            isinstance(each.rule, DirectRule) and each.rule.has_signal()
            for each in model.modules()
            if isinstance(each, FeedbackLayer)
        )

    def tells(self, labels: Tensor, scale: float) -> contextlib.AbstractContextManager[None]:
        """Around a forward pass in which each label counts `scale` in the loss, before a loss scaler multiplies it."""
        if not self._wanted:
            return contextlib.nullcontext()
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        return teaching.targets(labels, scale, loss_scale=1.0 if scaler is None else scaler.get_scale())
