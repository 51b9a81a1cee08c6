"""Alignment angles (W to B), norm ratios, and gradient angles (update to true gradient) of a network.

The functions leave parameters, `.grad`, buffers and the random state as they were.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from biotorch.kernel import teaching
from biotorch.layers import connections
from biotorch.layers.networks import isolated, true_gradients


def angle(a: Tensor, b: Tensor) -> float:
    """Angle in degrees, 0 to 180, between two flattened tensors of one shape; nan if one of them is zero.

    It uses Kahan's formula, which keeps small angles exact where acos(cosine) loses half the digits.

    Examples:
        >>> biotorch.metrics.angle(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0]))
        45.0
    """
    a, b = a.detach().flatten().double(), b.detach().flatten().double()
    norm_a, norm_b = a.norm(), b.norm()
    if norm_a == 0 or norm_b == 0:
        return math.nan
    a, b = a / norm_a, b / norm_b
    return math.degrees(2 * torch.atan2((a - b).norm(), (a + b).norm()).item())


def alignment_angles(model: nn.Module) -> dict[str, float]:
    """Alignment angle in degrees, between W and the effective B (signs included), of every feedback layer by name.

    0 is backpropagation. A layer with several weight matrices has one entry for each, with the parameter's name
    added. Layers of direct rules are left out, because their B has another shape than W; use `gradient_alignment`
    for them.

    Examples:
        >>> model = biotorch.convert(nn.Sequential(nn.Linear(99, 50), nn.ReLU(), nn.Linear(50, 9)), "fa", seed=0)
        >>> {name: round(angle) for name, angle in biotorch.metrics.alignment_angles(model).items()}
        {'0': 89, '2': 91}
    """
    return {
        name: angle(connection.weight, effective)
        for name, connection in connections(model).items()
        if (effective := connection.effective_feedback) is not None
    }


def norm_ratios(model: nn.Module) -> dict[str, float]:
    """Ratio |B| / |W| of every feedback layer, including layers of direct rules, by dotted name.

    Examples:
        >>> model = biotorch.convert(nn.Linear(99, 50), "fa", copy_weights=False, feedback_scale=2.0)
        >>> round(biotorch.metrics.norm_ratios(model)[""])
        2
    """
    ratios = {}
    for name, connection in connections(model).items():
        effective = connection.effective_feedback
        feedback = connection.feedback if effective is None else effective
        if feedback is not None:
            ratios[name] = (feedback.detach().double().norm() / connection.weight.detach().double().norm()).item()
    return ratios


def gradient_alignment(
    model: nn.Module, loss: Callable[[Any, Tensor], Tensor], inputs: Tensor, targets: Tensor
) -> dict[str, float]:
    """Gradient angle in degrees of every feedback layer: from the rule's gradient of W to the true one on a batch.

    It is defined for every rule. Both passes have the same dropout masks. Below 90 degrees an update descends
    the loss (Lillicrap et al. 2016). The angle is nan if one of the two gradients is zero.

    Args:
        model: a converted network, in the mode (train or eval) in which to measure.
        loss: function called as `loss(model(inputs), targets)`, which returns a scalar.
        inputs, targets: one batch.

    Examples:
        >>> model = biotorch.convert(nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)), "usf", seed=0)
        >>> x, y = torch.randn(4, 8), torch.tensor([0, 1, 2, 0])
        >>> angles = biotorch.metrics.gradient_alignment(model, nn.functional.cross_entropy, x, y)
        >>> angles["0"] < 90, angles["2"]  # the output layer gets the true gradient
        (True, 0.0)
    """
    trained = {name: each.trained for name, each in connections(model).items() if each.trained.requires_grad}
    weights = list(trained.values())
    if not weights:
        return {}

    # A user's own loss may take targets that are no tensor.
    told = teaching.targets if isinstance(targets, Tensor) else contextlib.nullcontext

    def gradients(context: contextlib.AbstractContextManager[None]) -> list[Tensor | None]:
        with isolated(model), context, torch.enable_grad(), told(targets):
            value = loss(model(inputs), targets)
            return list(torch.autograd.grad(value, weights, allow_unused=True))

    ruled, true = gradients(contextlib.nullcontext()), gradients(true_gradients(model))
    return {
        name: angle(a, b) for name, a, b in zip(trained, ruled, true, strict=True) if a is not None and b is not None
    }


__all__ = ["alignment_angles", "angle", "gradient_alignment", "norm_ratios"]
