"""Broadcast of an output layer's error to the direct layers, and its shape at their inputs.

The autograd graph is the registry. When the backward of an output layer runs, the error e is known. `broadcast`
then walks the graph upstream and leaves e with every direct node it meets. The engine runs those nodes later,
because they are upstream. Nothing is stored on modules, so several forwards before one backward, copies, threads,
checkpointing and several outputs need no special case. A gradient that reaches a direct layer without passing the
output layer raises an error instead of giving silent nonsense.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from biotorch.kernel.teaching import Targets

#: The function with which a rule replaces the error it broadcasts: (error, targets) -> tensor of the error's shape.
Signal: TypeAlias = Callable[[Tensor, Targets], Tensor]


class Output(NamedTuple):
    """Mark of an output layer, whose error is projected by rows `start` to `stop` (excluded) of every B.

    `inferred` is for layers built by hand, where nobody said which layer is last. Such a layer is an
    output exactly when no error reaches it from downstream.
    """

    start: int
    stop: int
    inferred: bool = False


class Slice(NamedTuple):
    """B of a layer when all layers share one matrix: the first `size` columns of that matrix, times `scale`."""

    size: int
    scale: float


class SentError:
    """Error (*positions, n_out) of one output layer in one backward pass, for all layers upstream."""

    __slots__ = ("_cast", "_projected", "_signals", "output", "targets", "tensor")

    def __init__(self, output: Output, tensor: Tensor, targets: Targets) -> None:
        self.output, self.tensor, self.targets = output, tensor, targets
        self._signals: dict[Signal, SentError] = {}
        self._cast: dict[torch.dtype, Tensor] = {}
        self._projected: dict[tuple[int, torch.dtype], Tensor] = {}

    def carried_by(self, signal: Signal | None) -> SentError:
        """The tensor that `signal` makes of this error, computed once; the error itself if `signal` is None."""
        if signal is None:
            return self
        if signal not in self._signals:
            self._signals[signal] = SentError(self.output, signal(self.tensor, self.targets), self.targets)
        return self._signals[signal]

    def to(self, dtype: torch.dtype) -> Tensor:
        """The error in `dtype`, converted once."""
        if dtype not in self._cast:
            self._cast[dtype] = self.tensor.to(dtype)
        return self._cast[dtype]

    def projected_by(self, matrix: Tensor, dtype: torch.dtype) -> Tensor:
        """Product (*positions, columns) of the error and its rows of a shared matrix, computed once.

        The matrix has the shape (n_out of all outputs together, columns).
        """
        key = (matrix.data_ptr(), dtype)
        if key not in self._projected:
            rows = matrix[self.output.start : self.output.stop]
            self._projected[key] = self.to(dtype) @ rows.to(dtype)
        return self._projected[key]


class Inbox:
    """Errors that were left with one direct node in one backward pass.

    They are tagged with the engine's pass. A graph that is walked twice (`retain_graph`, a partial
    `autograd.grad`) therefore never sees the error of an earlier pass.
    """

    __slots__ = ("_errors", "_task")

    def __init__(self) -> None:
        self._task = -1
        self._errors: list[SentError] = []

    def put(self, error: SentError) -> None:
        task = torch._C._current_graph_task_id()
        if task != self._task:
            self._task, self._errors = task, []
        self._errors.append(error)

    def take(self) -> list[SentError]:
        fresh = self._task == torch._C._current_graph_task_id()
        errors, self._errors = (self._errors if fresh else []), []
        return errors


def broadcast(node: Any, output: Output, error: Tensor) -> SentError:
    """Leave `error` with every direct node upstream of `node`, the output layer's node.

    `node.targets` holds the targets that were given around its forward pass.
    """
    sent = SentError(output, error, node.targets)
    seen, frontier = {node}, [node]
    while frontier:
        for upstream, _ in frontier.pop().next_functions:
            if upstream is None or upstream in seen:
                continue
            seen.add(upstream)
            frontier.append(upstream)
            inbox = getattr(upstream, "biotorch_inbox", None)
            if inbox is not None:
                inbox.put(sent)
    return sent


def aligned(error: Tensor, positions: tuple[int, ...], batch_dim: int, label: str, time_major: bool = False) -> Tensor:
    """Arrange the output's error for the positions of a layer's input, in a shape that broadcasts to (*positions, n).

    If output and layer have the same positions (tokens), each position receives its own error. One of them may
    have example and token flattened into one dimension. Otherwise every position of an example receives the sum
    over that example's positions at the output. Positions that belong to no example (a bias table computed once
    for the whole batch) receive the sum over the batch. If the layer has several entries in the first dimension
    per example (attention windows, frames), each receives the error of its example.

    Args:
        error: (*output positions, n).
        positions: leading dimensions of the layer's input, including the batch.
        batch_dim: index of the batch in `positions`: 0, or 1 in a time-major layer.
        label: name of the layer for error messages.
        time_major: whether the layer is part of a time-major network, whose error may be (T, N, n) or (N, T, n).

    Raises:
        RuntimeError: neither number of examples divides the other, or a time-major network has as many
            positions as examples, so that the two dimensions cannot be told apart.
    """
    if not time_major:
        return _aligned(error, positions, label)
    batch = positions[batch_dim]
    inner = (batch, *positions[:batch_dim], *positions[batch_dim + 1 :])  # the positions, batch first
    if error.dim() == 2 and len(inner) > 1 and len(error) == math.prod(inner) != batch:
        error = error.view(inner[1], batch, -1)  # (T * N, n) -> (T, N, n)
    if error.dim() > 2:
        if error.shape[0] == error.shape[1] == batch > 1:
            raise RuntimeError(
                f"{label}: the output has {batch} positions and {batch} examples, so a time-major network cannot "
                "tell the two dimensions apart: use batch_first=True, or another batch size."
            )
        if error.shape[1] == batch:
            error = error.transpose(0, 1)  # (T, N, n) -> (N, T, n)
    return _aligned(error, inner, label).movedim(0, batch_dim)


def _aligned(error: Tensor, positions: tuple[int, ...], label: str) -> Tensor:
    """`aligned` for an error and positions that both have the batch first."""
    own, n = tuple(error.shape[:-1]), error.shape[-1]
    if own == positions:
        return error
    if not positions:
        return error.reshape(-1, n).sum(0)
    # A table computed once for the batch also begins with 1, but has more dimensions than (1, tokens).
    may_be_flat = len(positions) <= 2 or positions[0] > 1
    if 1 in (len(own), len(positions)) and math.prod(own) == math.prod(positions) and may_be_flat:
        return error.reshape(*positions, n)
    # `summed` is (examples at the output, n).
    examples, summed = positions[0], error.flatten(1, -2).sum(1) if len(own) > 1 else error.reshape(-1, n)
    if len(summed) != examples:
        if own and examples % len(summed) == 0:
            summed = summed.repeat_interleave(examples // len(summed), 0)
        elif own and len(summed) % examples == 0:
            summed = summed.view(examples, -1, n).sum(1)
        else:
            raise RuntimeError(
                f"{label}: the output layer's error has {len(summed)} example(s), this layer's input has {examples}. "
                "Direct feedback needs the batch as the first dimension everywhere."
            )
    return summed.view(examples, *[1] * (len(positions) - 1), n)  # (examples, 1, ..., 1, n)
