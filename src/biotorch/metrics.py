"""Alignment angles (W to B), norm ratios, gradient angles (rule's gradient to true gradient), and similarity of layers.

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

    The effective B is B as the backward pass reads it: with the rule's options `bits` and `dead`, but without `noise`,
    whose factors are 1 on average. 0 is backpropagation. A layer with several weight matrices has one entry for each,
    with the parameter's name added. Layers of direct rules are left out, because their B has another shape than W; use
    `gradient_alignment` for them, which takes one draw of the noise.

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

    B is the one of `alignment_angles`, and under direct rules the stored one, without `bits`, `noise` and `dead`.

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


def gradients(
    model: nn.Module, loss: Callable[[Any, Tensor], Tensor], inputs: Tensor, targets: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """The rule's gradient of W and the true one, of every feedback layer by name, on a batch.

    Both passes have the same dropout masks. Layers that get no gradient are left out.

    Args:
        model: a converted network, in the mode (train or eval) in which to measure.
        loss: function called as `loss(model(inputs), targets)`, which returns a scalar.
        inputs, targets: one batch.

    Examples:
        >>> model = biotorch.convert(nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)), "usf", seed=0)
        >>> x, y = torch.randn(4, 8), torch.tensor([0, 1, 2, 0])
        >>> found = biotorch.metrics.gradients(model, nn.functional.cross_entropy, x, y)
        >>> [torch.equal(ruled, true) for ruled, true in found.values()]  # the output layer gets the true gradient
        [False, True]
    """
    trained = {name: each.trained for name, each in connections(model).items() if each.trained.requires_grad}
    weights = list(trained.values())
    if not weights:
        return {}

    # A user's own loss may take targets that are no tensor.
    told = teaching.targets if isinstance(targets, Tensor) else contextlib.nullcontext

    def found(context: contextlib.AbstractContextManager[None]) -> list[Tensor | None]:
        with isolated(model), context, torch.enable_grad(), told(targets):
            value = loss(model(inputs), targets)
            return list(torch.autograd.grad(value, weights, allow_unused=True))

    ruled, true = found(contextlib.nullcontext()), found(true_gradients(model))
    return {name: (a, b) for name, a, b in zip(trained, ruled, true, strict=True) if a is not None and b is not None}


def gradient_alignment(
    model: nn.Module, loss: Callable[[Any, Tensor], Tensor], inputs: Tensor, targets: Tensor
) -> dict[str, float]:
    """Gradient angle in degrees of every feedback layer: from the rule's gradient of W to the true one on a batch.

    It is defined for every rule. Below 90 degrees a small step against the rule's gradient descends the loss (Lillicrap
    et al. 2016). The angle is nan if one of the two gradients is zero.

    Args:
        model, loss, inputs, targets: as in `gradients`.

    Examples:
        >>> model = biotorch.convert(nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)), "usf", seed=0)
        >>> x, y = torch.randn(4, 8), torch.tensor([0, 1, 2, 0])
        >>> angles = biotorch.metrics.gradient_alignment(model, nn.functional.cross_entropy, x, y)
        >>> angles["0"] < 90, angles["2"]  # the output layer gets the true gradient
        (True, 0.0)
    """
    return {name: angle(ruled, true) for name, (ruled, true) in gradients(model, loss, inputs, targets).items()}


def representations(model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """Outputs of every layer with a weight matrix, by dotted name, each (n, features).

    They are the outputs of the layer itself, before the activation function that follows. Layers that the forward pass
    does not call are left out, and a layer that it calls several times has its last output.

    Args:
        model: a network, converted or not, in the mode (train or eval) in which to measure.
        inputs: (n, ...) examples.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(layer: nn.Module, arguments: Any, output: Any) -> None:
            main = output[0] if isinstance(output, tuple) else output
            found[name] = main.detach().flatten(1)

        return hook

    handles = [
        layer.register_forward_hook(keep(name))
        for name, layer in model.named_modules()
        if any(each.dim() > 1 for each in layer.parameters(recurse=False))
    ]
    try:
        with isolated(model), torch.no_grad():
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def cka(x: Tensor, y: Tensor) -> float:
    """Linear centred kernel alignment of two representations of the same n examples (Kornblith et al. 2019, section 3).

    ||Y^T X||^2 / (||X^T X|| ||Y^T Y||) with Frobenius norms, for X and Y whose columns have mean zero. It is 1 if one
    representation is a rotation and scaling of the other, and 0 if all their features are uncorrelated. With few
    examples and many features it is too high, even for unrelated representations.

    Args:
        x, y: (n, ...), flattened to (n, features); the numbers of features may differ.

    Returns:
        The similarity, 0 to 1; nan if a representation is equal for all examples.

    Raises:
        ValueError: the numbers of examples differ.
    """
    if len(x) != len(y):
        raise ValueError(f"y: {len(x)} examples are needed, as x has, not {len(y)}")
    x, y = (each.detach().flatten(1).double() for each in (x, y))
    x, y = x - x.mean(0), y - y.mean(0)
    a, b = x @ x.T, y @ y.T  # (n, n); their inner product is ||Y^T X||^2
    return float((a * b).sum() / (a.norm() * b.norm()))


__all__ = [
    "alignment_angles",
    "angle",
    "cka",
    "gradient_alignment",
    "gradients",
    "norm_ratios",
    "representations",
]
