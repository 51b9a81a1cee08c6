"""The linear map of convolutions and transposed convolutions, and the layout of a direct error in their input."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from biotorch.kernel.projection import Gradients


class Padding(NamedTuple):
    """Padding that the convolution itself cannot do: a mode other than zeros, or uneven sides."""

    mode: Literal["zeros", "reflect", "replicate", "circular"]
    #: Amounts in the order of `torch.nn.functional.pad`: the last dimension first, (before, after) each.
    amounts: tuple[int, ...]

    def apply(self, x: Tensor) -> Tensor:
        return F.pad(x, self.amounts, mode="constant" if self.mode == "zeros" else self.mode)

    def padded(self, size: Sequence[int]) -> tuple[int, ...]:
        """Spatial size after padding, for the spatial size `size`."""
        return tuple(length + sum(self._sides(axis, len(size))) for axis, length in enumerate(size))

    def adjoint(self, dy: Tensor, size: Sequence[int]) -> Tensor:
        """Gradient of the unpadded input, of spatial size `size`, from the gradient `dy` of the padded input.

        Every padded position adds its gradient to the position that it was read from.
        """
        for axis, length in enumerate(size):
            before, after = self._sides(axis, len(size))
            if self.mode == "zeros":
                dy = dy.narrow(2 + axis, before, length)
            elif before or after:
                source = _sources(self.mode, length, before, after, dy.device)
                shape = (*dy.shape[: 2 + axis], length, *dy.shape[3 + axis :])
                dy = dy.new_zeros(shape).index_add(2 + axis, source, dy)
        return dy

    def _sides(self, axis: int, dims: int) -> tuple[int, int]:
        last_first = 2 * (dims - 1 - axis)
        return self.amounts[last_first], self.amounts[last_first + 1]


class Convolution(NamedTuple):
    """The map (N, C_in, *size) -> (N, C_out, *size'). The first six fields are in the order of `aten::convolution`."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int
    kernel_size: tuple[int, ...]
    outside: Padding | None = None

    @property
    def batch_dim(self) -> int:
        return 0

    @property
    def time_major(self) -> bool:
        return False

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.convolution(self._padded(x), weight, bias, *self[:6])

    def backward(self, dy: Tensor, x: Tensor, weight: Tensor, mask: Sequence[bool]) -> Gradients:
        bias_sizes = [dy.shape[1]] if mask[2] else None
        dx, dw, db = torch.ops.aten.convolution_backward.default(
            dy, self._padded(x), weight, bias_sizes, *self[:6], list(mask)
        )
        if dx is not None and self.outside is not None:
            dx = self.outside.adjoint(dx, x.shape[2:])
        return dx, dw, db

    def output_error(self, dy: Tensor) -> Tensor:
        return dy.movedim(1, -1)

    def positions(self, x: Tensor) -> tuple[int, ...]:
        return (x.shape[0],)  # (N,): an error without a place in space is the same all over space

    def grid(self, x: Tensor) -> tuple[int, ...]:
        size = tuple(x.shape[2:]) if self.outside is None else self.outside.padded(x.shape[2:])
        return tuple(self.reached(axis, *each) for axis, each in enumerate(zip(size, self.kernel_size, strict=True)))

    def reached(self, axis: int, length: int, taps: int) -> int:
        """Output size of one dimension for the (padded) input size `length`."""
        stride, padding, dilation = (values[axis] for values in self[:3])
        reach = dilation * (taps - 1)
        if self.transposed:
            return (length - 1) * stride - 2 * padding + reach + self.output_padding[axis] + 1
        return (length + 2 * padding - reach - 1) // stride + 1

    def carried(self, error: Tensor, rows: Tensor, x: Tensor, mask: tuple[bool, bool]) -> list[Tensor]:
        """Gradients of an ungrouped convolution with the kernel B, at an error of each place.

        At an error that is the same in all places, the gradient by `x` equals `spread`.
        """
        kernel = rows.view(len(rows), x.shape[1], *self.kernel_size)  # (n_out, C_in, *kernel_size)
        kernel = kernel.transpose(0, 1) if self.transposed else kernel
        dx, gradient, _ = self._replace(groups=1).backward(error.movedim(-1, 1), x, kernel, (*mask, False))
        if gradient is not None:
            gradient = (gradient.transpose(0, 1) if self.transposed else gradient).flatten(1)
        return [each for each in (dx, gradient) if each is not None]

    def arranged(self, error: Tensor, align: Callable[[Tensor], Tensor]) -> Tensor:
        return align(error)

    def spread(self, projected: Tensor, x: Tensor) -> Tensor:
        """Vector-Jacobian product of an ungrouped convolution with kernel B, at an error held constant over space.

        `projected` is B e, (N, C_in * taps). The gradient at a position is the sum of B e over the kernel taps that
        connect it with an output. Only few sets of taps occur (interior, borders, stride phases). The sum is computed
        once for each set. A gather per dimension lays the sums out in the memory format of `x`, by whole rows.
        """
        size = tuple(x.shape[2:]) if self.outside is None else self.outside.padded(x.shape[2:])
        taps, sets, kinds = _taps(self, size, self.kernel_size, x.device)
        taps, (n, channels) = taps.to(projected.dtype), x.shape[:2]
        by_tap = projected.view(n, channels, -1)  # (N, C_in, taps)
        last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
        full = taps @ by_tap.transpose(1, 2) if last else by_tap @ taps.T  # (N, sets, C_in) or (N, C_in, sets)
        full = full.view(n, *sets, channels) if last else full.view(n, channels, *sets)
        for axis, kind in reversed(list(enumerate(kinds, start=1 if last else 2))):
            full = full.index_select(axis, kind)
        full = full.movedim(-1, 1) if last else full  # (N, C_in, *size)
        return full if self.outside is None else self.outside.adjoint(full, x.shape[2:])

    def spread_adjoint(self, x: Tensor, shape: torch.Size) -> Tensor:
        taps = math.prod(self.kernel_size)
        places = self.spread(torch.eye(taps, dtype=x.dtype, device=x.device), x.new_empty(taps, 1, *x.shape[2:]))
        # One product for each example, because a larger one would copy an `x` in channels_last.
        by_tap = torch.bmm(places.flatten(1).expand(len(x), -1, -1), x.flatten(2).transpose(1, 2))  # (N, taps, C_in)
        return by_tap.transpose(1, 2).reshape(shape)

    def _padded(self, x: Tensor) -> Tensor:
        return x if self.outside is None else self.outside.apply(x)


class Dense(Convolution):
    """A convolution whose direct feedback is a matrix (n_out, C_in * positions) (Nøkland 2016)."""

    def grid(self, x: Tensor) -> tuple[int, ...]:
        return ()

    def spread(self, projected: Tensor, x: Tensor) -> Tensor:
        if projected.shape[1] != x[0].numel():
            raise RuntimeError(
                f"feedback='dense' was made for inputs of {projected.shape[1]} values, but this input has "
                f"{x[0].numel()} ({'x'.join(map(str, x.shape[1:]))}): convert with inputs=... of this size"
            )
        return projected.view(x.shape)

    def spread_adjoint(self, x: Tensor, shape: torch.Size) -> Tensor:
        return x.reshape(shape)


def _sources(mode: str, length: int, before: int, after: int, device: torch.device) -> Tensor:
    """For each position of one padded dimension, the unpadded position that it was read from."""
    position = torch.arange(-before, length + after, device=device)
    if mode == "circular":
        return position % length
    if mode == "replicate":
        return position.clamp(0, length - 1)
    mirrored = position.abs()
    return torch.where(mirrored < length, mirrored, 2 * (length - 1) - mirrored)


@functools.lru_cache(maxsize=1024)
def _taps(
    convolution: Convolution, size: tuple[int, ...], kernel_size: tuple[int, ...], device: torch.device
) -> tuple[Tensor, list[int], list[Tensor]]:
    """Find the kernel taps that connect each input position with an existing output position.

    Returns:
        The distinct sets of taps, (sets, taps) of 0 and 1, flattened over the spatial dimensions; for each dimension
        their number; and which of them each position has, (length,).
    """
    sets, kinds = torch.ones(1, 1), []
    for axis, (length, taps) in enumerate(zip(size, kernel_size, strict=True)):
        rows = _reach(convolution, axis, length, taps)
        distinct = {row: number for number, row in enumerate(dict.fromkeys(rows))}
        sets = torch.kron(sets, torch.tensor(list(distinct), dtype=torch.float32))
        kinds.append(torch.tensor([distinct[row] for row in rows], device=device))
    return sets.to(device), [int(kind.max()) + 1 for kind in kinds], kinds


def _reach(convolution: Convolution, axis: int, length: int, taps: int) -> list[tuple[bool, ...]]:
    """For each input position of one dimension, the taps that reach an output position."""
    stride, padding, dilation = (values[axis] for values in convolution[:3])
    outputs = convolution.reached(axis, length, taps)
    if convolution.transposed:
        return [
            tuple(0 <= position * stride - padding + dilation * tap < outputs for tap in range(taps))
            for position in range(length)
        ]
    return [
        tuple(
            (position + padding - dilation * tap) % stride == 0
            and 0 <= (position + padding - dilation * tap) // stride < outputs
            for tap in range(taps)
        )
        for position in range(length)
    ]
