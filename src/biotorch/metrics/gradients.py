"""Gradient alignment: how far a rule's update is from the true gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from biotorch import teaching
from biotorch.layers import connections
from biotorch.metrics.weights import angle
from biotorch.module.isolation import isolated
from biotorch.module.true_gradient import true_gradients


def gradient_alignment(
    model: nn.Module, loss: Callable[[Any, Tensor], Tensor], inputs: Tensor, targets: Tensor
) -> dict[str, float]:
    """Degrees, per feedback layer, between the rule's gradient of W and the true one on the same batch.

    Defined for every rule. Both passes see the same dropout masks. Below 90 degrees an update descends
    the loss (Lillicrap et al. 2016); nan where one of the two gradients is zero.

    Args:
        model: a converted network, in the mode (train or eval) it is to be measured in.
        loss: `loss(model(inputs), targets)`, a scalar.
        inputs, targets: one batch.
    """
    trained = {name: each.trained for name, each in connections(model).items() if each.trained.requires_grad}
    weights = list(trained.values())
    if not weights:
        return {}

    # A loss of the user's own may take anything for targets.
    told = teaching.targets if isinstance(targets, Tensor) else contextlib.nullcontext

    def gradients(context: contextlib.AbstractContextManager[None]) -> list[Tensor | None]:
        with isolated(model), context, torch.enable_grad(), told(targets):
            value = loss(model(inputs), targets)
            return list(torch.autograd.grad(value, weights, allow_unused=True))

    ruled, true = gradients(contextlib.nullcontext()), gradients(true_gradients(model))
    return {
        name: angle(a, b) for name, a, b in zip(trained, ruled, true, strict=True) if a is not None and b is not None
    }
