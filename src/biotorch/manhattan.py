"""Batch Manhattan, which makes an optimizer step by the sign of the gradient."""

from __future__ import annotations

import inspect
from typing import Any, TypeVar

import torch

_Optimizer = TypeVar("_Optimizer", bound=torch.optim.Optimizer)


def batch_manhattan(optimizer: _Optimizer) -> _Optimizer:
    """Make `optimizer` use the sign of each gradient in its place, and return it (Liao et al. 2016, section 3).

    Momentum, weight decay and schedules work as before. The signs are taken at `step()`, from the gradient
    accumulated until then (over the batch and all processes), or from the gradient that a closure computes.
    sign(0) = 0.

    Raises:
        TypeError: `optimizer` is no torch optimizer.

    Examples:
        >>> layer = biotorch.convert(nn.Linear(2, 1, bias=False), "fa")
        >>> optimizer = biotorch.batch_manhattan(torch.optim.SGD(layer.parameters(), lr=0.5))
        >>> before = layer.weight.detach().clone()
        >>> layer(torch.tensor([[3.0, -7.0]])).sum().backward()
        >>> optimizer.step()
        >>> layer.weight.detach() - before
        tensor([[-0.5000,  0.5000]])
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"batch_manhattan takes a torch optimizer, got {type(optimizer).__name__}")
    optimizer.register_step_pre_hook(_before_step)
    return optimizer


def _before_step(
    optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Take signs before the step, and after each call of a closure, which computes gradients within the step.

    `args` are the optimizer and the arguments of `step`.
    """
    _take_signs(optimizer)
    if len(args) == 1 and not kwargs:
        return None
    bound = inspect.signature(type(optimizer).step).bind(*args, **kwargs)
    closure = bound.arguments.get("closure")
    if closure is None:
        return None

    def signed() -> Any:
        loss = closure()
        _take_signs(optimizer)
        return loss

    bound.arguments["closure"] = signed
    return bound.args, bound.kwargs


def _take_signs(optimizer: torch.optim.Optimizer) -> None:
    scale = getattr(optimizer, "grad_scale", None)  # a fused optimizer divides by the loss scale itself
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            if parameter.grad.is_sparse:
                parameter.grad = parameter.grad.coalesce()
            parameter.grad.sign_()
            if scale is not None:
                parameter.grad.mul_(scale)
