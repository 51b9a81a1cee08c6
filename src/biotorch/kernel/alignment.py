"""Alignment of the output's error with the rows and positions of a layer's input.

Rows are the first dimension. Which row belongs to which example cannot be told from shapes alone: `torch.cat` of two
views and the windows of an image have equal shapes. It is found out by experiment once, or declared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from biotorch.kernel.broadcast import Found, Pattern, Receiver

_CURE = (
    "Direct feedback needs the batch as the first dimension everywhere, or "
    "biotorch.convert(model, ..., rows=...): 'interleaved', 'tiled', or a function of the network's inputs that "
    "returns the example of each row."
)


def aligned(
    error: Tensor, positions: tuple[int, ...], receiver: Receiver, batch_dim: int = 0, time_major: bool = False
) -> Tensor:
    """Arrange the output's error for the positions of a layer's input, in a shape that broadcasts to (*positions, n).

    The first dimension has examples, or several rows per example, or rows that belong to several examples. Each row
    receives the error of its example, or the sum over its examples (`pattern_of`). A table computed once for
    the whole batch, with 1 in the first dimension, receives the sum over the batch.

    If output and layer have the same positions (tokens, pixels) in the other dimensions, each position receives its
    own error; either may have them flattened into one dimension, also together with the examples. If both have
    positions in two or more dimensions, of other sizes, errors come by place (`on_grid`). Otherwise every position
    receives the sum over the example's positions at the output.

    Args:
        error: (*output positions, n).
        positions: leading dimensions of the layer's input, including the batch.
        receiver: the layer, with its name and what is known of its rows.
        batch_dim: index of the batch in `positions`: 0, or 1 in a time-major layer.
        time_major: whether the layer is part of a time-major network, whose error may be (T, N, n) or (N, T, n).

    Raises:
        RuntimeError: it is not known which rows belong to which example, or a time-major network has as many
            positions as examples, so that the two dimensions cannot be told apart.
    """
    if not time_major:
        return _aligned(error, positions, receiver)
    batch = positions[batch_dim]
    inner = (batch, *positions[:batch_dim], *positions[batch_dim + 1 :])  # the positions, batch first
    if error.dim() == 2 and len(inner) > 1 and len(error) == math.prod(inner) != batch:
        error = error.view(inner[1], batch, -1)  # (T * N, n) -> (T, N, n)
    if error.dim() > 2:
        if error.shape[0] == error.shape[1] == batch > 1:
            raise RuntimeError(
                f"{receiver.label}: the output has {batch} positions and {batch} examples, so a time-major network "
                "cannot tell the two dimensions apart: use batch_first=True, or another batch size."
            )
        if error.shape[1] == batch:
            error = error.transpose(0, 1)  # (T, N, n) -> (N, T, n)
    return _aligned(error, inner, receiver).movedim(0, batch_dim)


def _aligned(error: Tensor, positions: tuple[int, ...], receiver: Receiver) -> Tensor:
    """`aligned` for an error and positions that both have the batch first."""
    own, n = tuple(error.shape[:-1]), error.shape[-1]
    if own == positions and own:
        return of_rows(error, own[0], receiver)
    if not positions:
        return error.reshape(-1, n).sum(0)
    rows, places = positions[0], positions[1:]
    if not own and rows != 1:
        raise RuntimeError(
            f"{receiver.label}: the output layer's error has no batch, this layer's input has {rows} row(s). {_CURE}"
        )
    error = error if own else error.unsqueeze(0)
    examples, theirs = len(error), own[1:]
    if theirs == places:
        return of_rows(error, rows, receiver)
    # A table computed once for the batch also begins with 1, but has more dimensions than (1, tokens).
    may_be_flat = (len(positions) <= 2 or rows > 1) and receiver.example_of(rows) is None
    if may_be_flat and rows != examples and () in (places, theirs) and math.prod(own) == math.prod(positions):
        tiled = pattern_of(receiver, examples, rows, flattened=True) == "tiled"
        if not theirs:  # (N * T, n) -> (N, *T, n)
            return error.view(*places, rows, n).movedim(-2, 0) if tiled else error.view(*positions, n)
        return error.movedim(0, -2).reshape(rows, n) if tiled else error.reshape(rows, n)  # (N, *T, n) -> (N * T, n)
    if theirs and places and 1 in (len(theirs), len(places)) and math.prod(theirs) == math.prod(places):
        return of_rows(error, rows, receiver).reshape(*positions, n)
    if len(theirs) == len(places) >= 2:
        return on_grid(of_rows(error, rows, receiver), places)
    summed = error.flatten(1, -2).sum(1) if theirs else error  # (examples at the output, n)
    return of_rows(summed, rows, receiver).view(rows, *[1] * len(places), n)  # (rows, 1, ..., 1, n)


def of_rows(error: Tensor, rows: int, receiver: Receiver) -> Tensor:
    """The error (examples, *positions, n) of each row's example, or summed over the row's examples: (rows, ...).

    Raises:
        RuntimeError: it is not known which rows belong to which example, or a declared example does not exist.
    """
    examples, network = len(error), receiver.network
    if rows == examples and (network is None or network.is_orderly) and not receiver.given:
        return error
    index = receiver.example_of(rows)
    if index is not None:
        try:
            return error.index_select(0, index.to(error.device))
        except IndexError as problem:
            raise RuntimeError(
                f"{receiver.label}: rows=... names an example beyond the {examples} of the output"
            ) from problem
    pattern = pattern_of(receiver, examples, rows)
    if rows == examples:
        return error
    if rows > examples:
        k = rows // examples
        return error.repeat_interleave(k, 0) if pattern == "interleaved" else error.repeat(k, *[1] * (error.dim() - 1))
    k = examples // rows
    if pattern == "interleaved":
        return error.view(rows, k, *error.shape[1:]).sum(1)
    return error.view(k, rows, *error.shape[1:]).sum(0)


def on_grid(error: Tensor, grid: Sequence[int]) -> Tensor:
    """Lay out the error (N, *size, n) on a grid of another size, (N, *grid, n), one dimension after the other.

    On a coarser grid a position receives the sum of the errors whose places lie in it; on a finer grid it receives the
    error of the position that it lies in. A place is the centre of a position when both grids cover the same length.
    """
    for axis, (size, wanted) in enumerate(zip(error.shape[1:-1], grid, strict=True), 1):
        if wanted != size:
            fine, coarse = max(wanted, size), min(wanted, size)
            inside = (torch.arange(fine, device=error.device) * 2 + 1) * coarse // (2 * fine)  # (fine,)
            if wanted > size:
                error = error.index_select(axis, inside)
            else:
                shape = (*error.shape[:axis], wanted, *error.shape[axis + 1 :])
                error = error.new_zeros(shape).index_add(axis, inside, error)
    return error


def pattern_of(receiver: Receiver, examples: int, rows: int, flattened: bool = False) -> Pattern:
    """Pattern in which `rows` rows of a layer's input belong to `examples` rows of the output.

    `flattened` says that the shapes tell: one of both has examples and tokens in one dimension.

    Raises:
        RuntimeError: they follow no pattern, or nobody knows which.
    """
    if 1 in (examples, rows):
        return "interleaved"
    common = rows if rows == examples else math.gcd(examples, rows)
    k, m = rows // common, examples // common
    known = _known(receiver, k, m) if 1 in (k, m) else None
    if known is None and (k == m or flattened):
        known = "interleaved"
    if known is not None and known != "other":
        return known
    what = "in an order that was not recognised" if known else "and it is not known which belongs to which example"
    raise RuntimeError(
        f"{receiver.label}: the output layer's error has {examples} example(s), this layer's input has {rows} row(s), "
        f"{what}. {_CURE}"
    )


def _known(receiver: Receiver, k: int, m: int) -> Found | None:
    """Pattern of k rows of a layer's input and m rows of the output, one of them 1, or None if nobody knows it.

    It is declared, or found by experiment. If no gradient reached the layer in the experiment, the other layers with
    the same k and m answer for it, if they agree.
    """
    network = receiver.network
    if network is None or callable(network.rows):
        return None
    if network.rows is not None:
        return network.rows
    if (receiver.label, k, m) in network.found or k == m:
        return network.found.get((receiver.label, k, m))
    others = {found for (_, *theirs), found in network.found.items() if theirs == [k, m]}
    return others.pop() if len(others) == 1 else None
