"""Targets for rules that send targets backwards, given by `with biotorch.targets(y):` around the forward pass."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F


class Targets:
    """Targets of one forward pass, and the weight of one example in the loss.

    Args:
        y: integer labels (*positions), of which negative ones are ignored, or rows (*positions, n_out).
        scale: weight of one example's (one token's) loss in the total. Default 1 / n, for a loss that is a mean.
        loss_scale: factor by which a loss scaler multiplies the total.
    """

    def __init__(self, y: Tensor | None = None, scale: float | None = None, loss_scale: float = 1.0) -> None:
        self.y, self.scale, self.loss_scale = y, scale, loss_scale

    def weight(self, error: Tensor) -> float:
        """Weight of one row of `error` (*positions, n_out) in the loss, times the loss scale."""
        return self.loss_scale * (1 / max(1, error[..., 0].numel()) if self.scale is None else self.scale)

    def arranged(self, arrange: Callable[[Tensor], Tensor], error: Tensor) -> Targets:
        """The targets with rows in the order of `error`, into which `arrange` brings what has the output's shape.

        The output of a convolution has its channels in front of its positions, its error behind them.
        """
        if self.y is None or self.y.dim() != error.dim() or error.dim() == 2:
            return self
        y = arrange(self.y)
        return Targets(y, self.scale, self.loss_scale) if y.shape == error.shape else self

    def rows(self, error: Tensor) -> Tensor:
        """The targets in the shape of `error`, (*positions, n_out); labels become one-hot rows.

        Raises:
            RuntimeError: no targets were given, or they do not fit the output.
        """
        if self.y is None:
            raise RuntimeError(
                "the rule sends targets backwards, and none were given: "
                "run the forward pass inside `with biotorch.targets(y):`"
            )
        y, classes = self.y.to(error.device), error.shape[-1]
        if y.shape == error.shape:
            return y.to(error.dtype)
        if y.is_floating_point() or y.numel() * classes != error.numel() or (y.numel() > 0 and int(y.max()) >= classes):
            raise RuntimeError(
                f"targets of shape {tuple(self.y.shape)} do not fit an output of shape {tuple(error.shape)}: "
                f"give one integer label below {classes} for each position, or rows in the output's shape"
            )
        y = y.reshape(error.shape[:-1])
        return F.one_hot(y.clamp(min=0), classes).to(error.dtype) * (y >= 0).unsqueeze(-1)


_NONE = Targets()
_current: contextvars.ContextVar[Targets] = contextvars.ContextVar("biotorch_targets", default=_NONE)


def current() -> Targets:
    """Targets of the enclosing `with` block; empty targets outside of one."""
    return _current.get()


@contextlib.contextmanager
def given(targets: Targets) -> Iterator[None]:
    """Give `targets` to all forward passes inside the `with` block."""
    token = _current.set(targets)
    try:
        yield
    finally:
        _current.reset(token)


def targets(
    y: Tensor, scale: float | None = None, *, loss_scale: float = 1.0
) -> contextlib.AbstractContextManager[None]:
    """Give the network its targets, for rules that send targets backwards (`drtp`).

    Use it around the forward pass: `with biotorch.targets(y): output = model(x)`. The backward may run later, on any
    thread. Rules that need no targets ignore them. Blocks may be nested: the innermost one counts.

    Args:
        y: integer labels (N,) or (N, T), of which negative ones are ignored, or rows in the output's shape.
        scale: weight of one example (one token) in the loss. `drtp` and `sdfa` multiply their signals by it, because
            the signals have lost the size of the error. Default 1 / n, as in a mean over the batch. Give it
            if gradients are accumulated or summed over processes.
        loss_scale: factor by which a loss scaler multiplies the loss, `scaler.get_scale()`. `drtp` and `sdfa`
            multiply their signals by it, too.

    Raises:
        TypeError: `y` is not a tensor.

    Examples:
        >>> model = biotorch.convert(nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)), "drtp")
        >>> x, y = torch.randn(4, 8), torch.tensor([0, 1, 2, 0])
        >>> with biotorch.targets(y):
        ...     loss = nn.functional.cross_entropy(model(x), y)
        >>> loss.backward()
        >>> model[0].weight.grad.shape
        torch.Size([6, 8])
    """
    if not isinstance(y, Tensor):
        raise TypeError(f"targets are a tensor, not {type(y).__name__}")
    return given(Targets(y.detach(), scale, loss_scale))


class RandomTargets(Targets):
    """One-hot targets for an output of any shape, always the same, for experiments without data."""

    def rows(self, error: Tensor) -> Tensor:
        index = torch.arange(error[..., 0].numel(), device=error.device) % error.shape[-1]
        return F.one_hot(index, error.shape[-1]).view(error.shape).to(error.dtype)
