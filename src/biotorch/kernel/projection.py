"""Projection of the output's error to the input of a direct layer, and the interface of the maps it goes through."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from biotorch.kernel.alignment import aligned, of_rows, on_grid
from biotorch.kernel.broadcast import Receiver, SentError

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

    def carried(self, error: Tensor, rows: Tensor, x: Tensor) -> Tensor:
        """Product of a kernel B, (n_out, elements of one row), and an error on the grid, (N, *grid, n_out)."""
        ...


def _shared_space(operation: Operation, error: SentError, x: Tensor) -> tuple[int, ...]:
    """The grid of a layer with a kernel B if the error has places in the same dimensions, else empty."""
    size = error.tensor.shape[1:-1]
    grid = operation.grid(x) if size.numel() > 1 else ()
    return grid if len(grid) == len(size) else ()


def _projected(
    operation: Operation, receiver: Receiver, errors: Sequence[SentError], x: Tensor, feedback: Tensor
) -> Tensor:
    """Sum of B e over the output layers, in the shape and type of `x`."""
    columns = receiver.columns
    place = operation.positions(x), receiver, operation.batch_dim, operation.time_major

    def align(error: Tensor) -> Tensor:
        return aligned(error, *place)

    terms = []
    for error in errors:
        first, last = error.output.start, error.output.stop
        if error.tensor.dim() > 2 and (grid := _shared_space(operation, error, x)):
            rows = feedback[first:last].to(x.dtype).flatten(1)  # (n_out, row size)
            rows = rows if columns is None else rows[:, : columns.size] * columns.scale
            field = on_grid(of_rows(error.to(x.dtype), len(x), receiver), grid)  # (N, *grid, n_out)
            terms.append(operation.carried(field, rows, x))
            continue
        if columns is None:
            rows = feedback[first:last].to(x.dtype).flatten(1)  # (n_out, row size)
            projected = operation.arranged(error.to(x.dtype), align) @ rows  # (*positions, row size), or broadcastable
        else:
            whole = error.projected_by(feedback, x.dtype)  # (*output positions, columns of the shared matrix)
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
) -> tuple[Tensor, Tensor]:
    """The projected error, and the gradient for a B that learns: the derivative of <B e, x> by B.

    If many positions (of an image, a text) receive the same error, the gradient is the mean over them: the average of
    the products that the rows of a dense B would get.
    """
    with torch.enable_grad():
        variable = feedback.detach().requires_grad_()
        sent = _projected(operation, receiver, errors, x, variable)
    (product,) = torch.autograd.grad(sent, variable, x.to_dense())
    most = max(errors, key=lambda error: error.tensor[..., 0].numel())
    grid = _shared_space(operation, most, x)
    positions = len(x) * math.prod(grid) if grid else x.numel() // feedback.shape[1]
    return _clipped(sent.detach(), receiver), product / max(1.0, positions / max(1, most.tensor[..., 0].numel()))


def _clipped(error: Tensor, receiver: Receiver) -> Tensor:
    return error.clamp(-1, 1) if receiver.clip else error
