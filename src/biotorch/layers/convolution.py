"""Convolutions and transposed convolutions in one, two and three dimensions."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from biotorch.autograd import Gradients, Operation
from biotorch.layers.base import FeedbackLayer, register_layer
from biotorch.layers.linear import per_example


class Padding(NamedTuple):
    """Padding that the convolution itself cannot do: another mode than zeros, or uneven sides."""

    mode: Literal["zeros", "reflect", "replicate", "circular"]
    #: As `torch.nn.functional.pad` takes it: the last dimension first, (before, after) each.
    amounts: tuple[int, ...]

    def apply(self, x: Tensor) -> Tensor:
        return F.pad(x, self.amounts, mode="constant" if self.mode == "zeros" else self.mode)

    def padded(self, size: Sequence[int]) -> tuple[int, ...]:
        """The spatial size after padding."""
        return tuple(length + sum(self._sides(axis, len(size))) for axis, length in enumerate(size))

    def adjoint(self, dy: Tensor, size: Sequence[int]) -> Tensor:
        """The gradient of the unpadded input: every padded position adds to the one it was read from."""
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
    """The map (N, C_in, *size) -> (N, C_out, *size'); the first six in the order of `aten::convolution`."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int
    outside: Padding | None = None

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.convolution(self._padded(x), weight, bias, *self[:6])

    def backward(self, dy: Tensor, x: Tensor, weight: Tensor, mask: Sequence[bool]) -> Gradients:
        bias_sizes = [dy.shape[1]] if mask[2] else None
        dx, dw, db = torch.ops.aten.convolution_backward(dy, self._padded(x), weight, bias_sizes, *self[:6], list(mask))
        if dx is not None and self.outside is not None:
            dx = self.outside.adjoint(dx, x.shape[2:])
        return dx, dw, db

    def output_error(self, dy: Tensor) -> Tensor:
        return dy.movedim(1, -1)

    def project(self, error: Tensor, feedback: Tensor, x: Tensor) -> Tensor:
        """The vector-Jacobian product of an ungrouped convolution with kernel B at a constant error.

        The result takes few distinct values over space (interior, borders, stride phases), one per
        set of kernel taps that reach a position: B is summed over each such set, one small product
        with e gives the values, and a gather lays them out in the memory format of `x`.
        """
        size = x.shape[2:] if self.outside is None else self.outside.padded(x.shape[2:])
        classes, index = self._taps(size, feedback.shape[2:], x.device)
        kernel = feedback  # (n_out, C_in, *kernel_size)
        for taps in classes:  # consumes the first kernel dimension, appends one of classes
            kernel = torch.tensordot(kernel, taps.to(kernel.dtype), dims=([2], [1]))
        kernel = kernel.flatten(2)
        error = per_example(error)
        n, (n_out, channels, _) = error.shape[0], kernel.shape
        if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
            values = error @ kernel.transpose(1, 2).reshape(n_out, -1)
            laid_out = values.view(n, -1, channels).index_select(1, index)
            projected = laid_out.view(n, *size, channels).movedim(-1, 1)
        else:
            values = error @ kernel.reshape(n_out, -1)
            projected = values.view(n, channels, -1).index_select(2, index).view(n, channels, *size)
        return projected if self.outside is None else self.outside.adjoint(projected, x.shape[2:])

    def _padded(self, x: Tensor) -> Tensor:
        return x if self.outside is None else self.outside.apply(x)

    def _taps(
        self, size: Sequence[int], kernel_size: Sequence[int], device: torch.device
    ) -> tuple[list[Tensor], Tensor]:
        """Per dimension the distinct sets of taps (classes, taps), and each position's class, flattened."""
        classes, flat = [], torch.zeros(1, dtype=torch.long, device=device)
        for axis, (length, taps) in enumerate(zip(size, kernel_size, strict=True)):
            sets, position = _reach(
                length,
                taps,
                self.stride[axis],
                self.padding[axis],
                self.dilation[axis],
                self.output_padding[axis] if self.transposed else None,
                device,
            )
            classes.append(sets)
            flat = (flat[:, None] * len(sets) + position).flatten()
        return classes, flat


def _sources(mode: str, length: int, before: int, after: int, device: torch.device) -> Tensor:
    """The position that each position of one padded dimension was read from."""
    position = torch.arange(-before, length + after, device=device)
    if mode == "circular":
        return position % length
    if mode == "replicate":
        return position.clamp(0, length - 1)
    mirrored = position.abs()
    return torch.where(mirrored < length, mirrored, 2 * (length - 1) - mirrored)


@functools.lru_cache(maxsize=1024)
def _reach(
    length: int,
    taps: int,
    stride: int,
    padding: int,
    dilation: int,
    output_padding: int | None,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Which kernel taps connect each input position of one dimension with an existing output position.

    Returns the distinct sets of taps, (classes, taps) of 0 and 1, and the class of each position.
    `output_padding` None: an ordinary convolution.
    """
    reach = dilation * (taps - 1)
    rows = []
    for position in range(length):
        if output_padding is None:
            outputs = (length + 2 * padding - reach - 1) // stride + 1
            offsets = [position + padding - dilation * tap for tap in range(taps)]
            hits = [offset % stride == 0 and 0 <= offset // stride < outputs for offset in offsets]
        else:
            outputs = (length - 1) * stride - 2 * padding + reach + output_padding + 1
            hits = [0 <= position * stride - padding + dilation * tap < outputs for tap in range(taps)]
        rows.append(tuple(hits))
    distinct = list(dict.fromkeys(rows))
    return (
        torch.tensor(distinct, dtype=torch.float32, device=device),
        torch.tensor([distinct.index(row) for row in rows], device=device),
    )


class _ConvolutionLayer(FeedbackLayer):
    """What the convolutions share. Attributes as in `torch.nn.modules.conv._ConvNd`."""

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def projection_shape(self) -> tuple[int, ...]:
        return (self.in_channels, *self.kernel_size)

    @property
    def output_size(self) -> int:
        return self.out_channels

    def _batched(self, x: Tensor) -> Tensor:
        return x if x.dim() == len(self.kernel_size) + 2 else x.unsqueeze(0)

    def restore(self, y: Tensor, x: Tensor) -> Tensor:
        return y if x.dim() == y.dim() else y.squeeze(0)


class _Conv(_ConvolutionLayer):
    padding_mode: Literal["zeros", "reflect", "replicate", "circular"]
    _reversed_padding_repeated_twice: list[int]

    def operation(self, x: Tensor) -> tuple[Tensor, Operation]:
        dims = len(self.kernel_size)
        pads = self._reversed_padding_repeated_twice  # last dimension first: (before, after) each
        padding, outside = tuple(pads[2 * (dims - 1 - axis)] for axis in range(dims)), None
        if self.padding_mode != "zeros" or pads[0::2] != pads[1::2]:  # uneven: "same" with an even reach
            padding, outside = (0,) * dims, Padding(self.padding_mode, tuple(pads))
        return self._batched(x), Convolution(
            self.stride, padding, self.dilation, False, (0,) * dims, self.groups, outside
        )


class _ConvTranspose(_ConvolutionLayer):
    padding: Any

    def operation(self, x: Tensor, output_size: list[int] | None = None) -> tuple[Tensor, Operation]:
        batched = self._batched(x)
        dims = len(self.kernel_size)
        output_padding = self._output_padding(  # type: ignore[operator]
            x, output_size, self.stride, self.padding, self.kernel_size, dims, self.dilation
        )
        return batched, Convolution(self.stride, self.padding, self.dilation, True, tuple(output_padding), self.groups)


@register_layer(nn.Conv1d)
class Conv1d(_Conv, nn.Conv1d):
    """`torch.nn.Conv1d` under a learning rule."""


@register_layer(nn.Conv2d)
class Conv2d(_Conv, nn.Conv2d):
    """`torch.nn.Conv2d` under a learning rule."""


@register_layer(nn.Conv3d)
class Conv3d(_Conv, nn.Conv3d):
    """`torch.nn.Conv3d` under a learning rule."""


@register_layer(nn.ConvTranspose1d)
class ConvTranspose1d(_ConvTranspose, nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d` under a learning rule."""


@register_layer(nn.ConvTranspose2d)
class ConvTranspose2d(_ConvTranspose, nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` under a learning rule."""


@register_layer(nn.ConvTranspose3d)
class ConvTranspose3d(_ConvTranspose, nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d` under a learning rule."""
