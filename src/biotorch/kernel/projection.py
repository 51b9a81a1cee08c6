"""Projection of the output's error to the input of a direct layer, and the interface of the maps it goes through."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from biotorch.kernel.alignment import aligned, of_rows, on_grid
from biotorch.kernel.broadcast import Receiver, SentError
from biotorch.kernel.imperfection import read

#: Gradients of (input, weight, bias); None where the mask did not ask for one.
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


class Operation(Protocol):
    """Interface of a layer type: its linear map, the derivative of that map, and the projection of a direct error."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor: ...

    def backward(self, dy: Tensor, x: Tensor, weight: Tensor, mask: Sequence[bool]) -> Gradients:
        """Gradients of (x, weight, bias) where `mask` is true; dx uses `weight`, whatever the forward used."""
        ...

    def output_error(self, dy: Tensor) -> Tensor:
        """Gradient of this operation's output with channels last: (N, ..., n_out)."""
        ...

    @property
    def batch_dim(self) -> int:
        """Index of the batch dimension in `positions(x)`."""
        ...

    @property
    def time_major(self) -> bool:
        """Whether the layer is part of a time-major network."""
        ...

    def positions(self, x: Tensor) -> tuple[int, ...]:
        """Leading dimensions of `x`, including the batch, whose entries may each receive an error of their own."""
        ...

    def grid(self, x: Tensor) -> tuple[int, ...]:
        """Spatial size of the layer's output if B is a kernel, which may read an error at each place; else empty."""
        ...

    def arranged(self, error: Tensor, align: Callable[[Tensor], Tensor]) -> Tensor:
        """Arrange `error` for the rows of `x`; `align` does so for all of `positions(x)`, which is mostly enough."""
        ...

    def spread(self, projected: Tensor, x: Tensor) -> Tensor:
        """Lay out B e in the shape of `x`.

        `projected` is B e, (*positions, elements of one row of B) or broadcastable to that.
        """
        ...

    def carried(self, error: Tensor, rows: Tensor, x: Tensor, mask: tuple[bool, bool]) -> list[Tensor]:
        """Gradients of <map(x, B), error> by x, and by a kernel B, where `mask` is true.

        Args:
            error: the error on the grid, (N, *grid, n_out).
            rows: B, (n_out, elements of one row), the shape of its gradient, too.
            x: input of the layer.
            mask: the gradients to compute.
        """
        ...

    def spread_adjoint(self, x: Tensor, shape: torch.Size) -> Tensor:
        """Adjoint of `spread` at `x`, in the shape of B e: at each element the sum of what would receive it."""
        ...


def _shared_space(operation: Operation, error: SentError, x: Tensor) -> tuple[int, ...]:
    """The grid of a layer with a kernel B if the error has places in the same dimensions, else empty."""
    size = error.tensor.shape[1:-1]
    grid = operation.grid(x) if size.numel() > 1 else ()
    return grid if len(grid) == len(size) else ()


def _field(error: SentError, x: Tensor, receiver: Receiver, grid: tuple[int, ...]) -> Tensor:
    """The error on a layer's grid, (N, *grid, n_out)."""
    return on_grid(of_rows(error.to(x.dtype), len(x), receiver), grid)


def _aligner(operation: Operation, receiver: Receiver, x: Tensor) -> Callable[[Tensor], Tensor]:
    """Function that arranges an error for the positions of `x`."""
    place = operation.positions(x), receiver, operation.batch_dim, operation.time_major
    return lambda error: aligned(error, *place)


def _projected(
    operation: Operation, receiver: Receiver, errors: Sequence[SentError], x: Tensor, feedback: Tensor
) -> Tensor:
    """Sum of B e over the output layers, in the shape and type of `x`."""
    columns, align, terms = receiver.columns, _aligner(operation, receiver, x), []
    imperfection = receiver.imperfection
    if columns is None:
        feedback, imperfection = read(feedback, imperfection), None
    for error in errors:
        first, last = error.output.start, error.output.stop
        if grid := _shared_space(operation, error, x):
            rows = read(feedback, imperfection)[first:last].to(x.dtype).flatten(1)  # (n_out, row size)
            rows = rows if columns is None else rows[:, : columns.size] * columns.scale
            terms += operation.carried(_field(error, x, receiver, grid), rows, x, (True, False))
            continue
        if columns is None:
            rows = feedback[first:last].to(x.dtype).flatten(1)  # (n_out, row size)
            projected = operation.arranged(error.to(x.dtype), align) @ rows  # (*positions, row size), or broadcastable
        else:
            # (*output positions, columns of the shared matrix)
            whole = error.projected_by(feedback, x.dtype, imperfection)
            projected = operation.arranged(whole, align)[..., : columns.size] * columns.scale
        try:
            terms.append(operation.spread(projected, x))
        except RuntimeError as problem:
            raise RuntimeError(
                f"{receiver.label}: the output's error does not fit this layer's input {tuple(x.shape)}: {problem}"
            ) from problem
    return terms[0] if len(terms) == 1 else torch.stack(terms).sum(0)


def projected(
    operation: Operation, receiver: Receiver, errors: Sequence[SentError], x: Tensor, feedback: Tensor
) -> Tensor:
    """The projected error, clamped if asked, which stands in the place of the gradient of `x`."""
    return _clipped(_projected(operation, receiver, errors, x, feedback), receiver)


def learned(
    operation: Operation, receiver: Receiver, errors: Sequence[SentError], x: Tensor, feedback: Tensor
) -> Tensor:
    """Gradient for a B that learns: the derivative of <B e, x> by B, in the shape of `feedback`.

    If many positions (of an image, a text) receive the same error, the gradient is the mean over them: the average of
    the products that the rows of a dense B would get.
    """
    size, x, align = feedback[0].numel(), x.to_dense(), _aligner(operation, receiver, x)
    terms = []
    for error in errors:
        if grid := _shared_space(operation, error, x):
            rows = feedback[error.output.start : error.output.stop].to(x.dtype).flatten(1)
            terms += operation.carried(_field(error, x, receiver, grid), rows, x, (False, True))
        else:
            arranged = operation.arranged(error.to(x.dtype), align)  # (*positions, n_out), or broadcastable
            gathered = operation.spread_adjoint(x, torch.Size((*arranged.shape[:-1], size)))
            terms.append(arranged.reshape(-1, arranged.shape[-1]).T @ gathered.reshape(-1, size))
    if len(errors) == 1 and len(terms[0]) == len(feedback):
        gradient = terms[0].to(feedback.dtype).view(feedback.shape)
    else:
        gradient = torch.zeros_like(feedback)
        for error, term in zip(errors, terms, strict=True):
            gradient[error.output.start : error.output.stop] += term.view(-1, *feedback.shape[1:])
    most = max(errors, key=lambda error: error.tensor.numel() // error.tensor.shape[-1])
    grid = _shared_space(operation, most, x)
    positions = len(x) * math.prod(grid) if grid else x.numel() // feedback.shape[1]
    shared = positions * most.tensor.shape[-1] / max(1, most.tensor.numel())  # positions that receive the same error
    return gradient / shared if shared > 1 else gradient


def _clipped(error: Tensor, receiver: Receiver) -> Tensor:
    return error.clamp(-1, 1) if receiver.clip else error
