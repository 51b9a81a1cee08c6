"""Targets for the rules that send them backwards: `with biotorch.targets(y):` around the forward pass."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F


class Targets:
    """The targets of one forward pass, and what an example counts in the loss.

    Args:
        y: labels (*positions), integers; negative ones are ignored. Or rows (*positions, n_out).
        scale: weight of an example's (a token's) loss in the total. Default: the loss is a mean, 1 / n.
        loss_scale: by what a loss scaler multiplies the total.
    """

    def __init__(self, y: Tensor | None = None, scale: float | None = None, loss_scale: float = 1.0) -> None:
        self.y, self.scale, self.loss_scale = y, scale, loss_scale

    def weight(self, error: Tensor) -> float:
        """What one row of `error` (*positions, n_out) counts in the loss, scaled."""
        return self.loss_scale * (1 / max(1, error[..., 0].numel()) if self.scale is None else self.scale)

    def rows(self, error: Tensor) -> Tensor:
        """The targets in the shape of `error`, (*positions, n_out): one-hot where they are labels.

        Raises:
            RuntimeError: there are none, or they do not fit the output.
        """
        if self.y is None:
            raise RuntimeError(
                "the rule sends targets backwards, and there are none: "
                "run the forward inside `with biotorch.targets(y):`"
            )
        y, classes = self.y.to(error.device), error.shape[-1]
        if y.shape == error.shape:
            return y.to(error.dtype)
        if y.is_floating_point() or y.numel() * classes != error.numel() or (y.numel() > 0 and int(y.max()) >= classes):
            raise RuntimeError(
                f"targets of shape {tuple(self.y.shape)} do not fit an output {tuple(error.shape)}: "
                "labels below its last dimension, one for each position, or rows in its shape"
            )
        y = y.reshape(error.shape[:-1])
        return F.one_hot(y.clamp(min=0), classes).to(error.dtype) * (y >= 0).unsqueeze(-1)


_NONE = Targets()
_current: contextvars.ContextVar[Targets] = contextvars.ContextVar("biotorch_targets", default=_NONE)


def current() -> Targets:
    """Targets of the enclosing `with` block; empty outside of one."""
    return _current.get()


@contextlib.contextmanager
def given(targets: Targets) -> Iterator[None]:
    """Inside, forward passes have these targets."""
    token = _current.set(targets)
    try:
        yield
    finally:
        _current.reset(token)


def targets(
    y: Tensor, scale: float | None = None, *, loss_scale: float = 1.0
) -> contextlib.AbstractContextManager[None]:
    """Tell the network's output what it should be, for rules that send that backwards (`drtp`).

    `with biotorch.targets(y): output = model(x)`. Decided in the forward; the backward may run later, on any
    thread. Rules that do not ask for targets ignore them. May be nested: the inner one holds.

    Args:
        y: labels (N,) or (N, T), integers, of which negative ones are ignored; or rows in the output's shape.
        scale: what one example (one token) counts in the loss: `drtp` and `sdfa` hand on signals of that size,
            because nothing of the error's own is left in them. Default 1 / n, as in a mean over the batch; give it
            where gradients are accumulated or summed over processes.
        loss_scale: by what a loss scaler multiplies the loss, `scaler.get_scale()`: `drtp` and `sdfa` multiply their
            signals by it.

    Raises:
        TypeError: y is no tensor.
    """
    if not isinstance(y, Tensor):
        raise TypeError(f"targets are a tensor, not {type(y).__name__}")
    return given(Targets(y.detach(), scale, loss_scale))


class RandomTargets(Targets):
    """Some one-hot targets for any output, always the same: for experiments without data."""

    def rows(self, error: Tensor) -> Tensor:
        index = torch.arange(error[..., 0].numel(), device=error.device) % error.shape[-1]
        return F.one_hot(index, error.shape[-1]).view(error.shape).to(error.dtype)
