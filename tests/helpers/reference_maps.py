"""Affine maps and their derivatives, slowly, in float64: what `reference` makes its layers of.

A convolution is the list of its connections (input position, output position, kernel tap).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Axis(NamedTuple):
    """One spatial dimension: its output size and its connections (input, output, tap)."""

    outputs: int
    connections: list[tuple[int, int, int]]


def source(position: int, size: int, mode: str) -> int | None:
    """The input element that padding shows at `position`; None for a zero."""
    if 0 <= position < size:
        return position
    if mode == "zeros":
        return None
    if mode == "replicate":
        return min(max(position, 0), size - 1)
    if mode == "circular":
        return position % size
    assert mode == "reflect"
    return -position if position < 0 else 2 * (size - 1) - position


def convolution_axis(module: nn.Module, axis: int, size: int) -> Axis:
    taps, stride, dilation = module.kernel_size[axis], module.stride[axis], module.dilation[axis]
    reach = dilation * (taps - 1)
    if module.padding == "same":
        before, total = reach // 2, reach
    elif module.padding == "valid":
        before, total = 0, 0
    else:
        before, total = module.padding[axis], 2 * module.padding[axis]
    outputs = (size + total - reach - 1) // stride + 1
    connections = []
    for output, tap in itertools.product(range(outputs), range(taps)):
        position = source(output * stride + dilation * tap - before, size, module.padding_mode)
        if position is not None:
            connections.append((position, output, tap))
    return Axis(outputs, connections)


def same_axis(module: nn.Module, axis: int, size: int) -> Axis:
    """TensorFlow's SAME: as many outputs as strides begin within the input, an odd zero comes after it."""
    taps, stride, dilation = module.kernel_size[axis], module.stride[axis], module.dilation[axis]
    outputs = -(-size // stride)
    before = max((outputs - 1) * stride + dilation * (taps - 1) + 1 - size, 0) // 2
    connections = [
        (position, output, tap)
        for output, tap in itertools.product(range(outputs), range(taps))
        if 0 <= (position := output * stride + dilation * tap - before) < size
    ]
    return Axis(outputs, connections)


def transposed_axis(module: nn.Module, axis: int, size: int) -> Axis:
    taps, stride, dilation = module.kernel_size[axis], module.stride[axis], module.dilation[axis]
    before = module.padding[axis]
    outputs = (size - 1) * stride - 2 * before + dilation * (taps - 1) + module.output_padding[axis] + 1
    connections = []
    for position, tap in itertools.product(range(size), range(taps)):
        output = position * stride + dilation * tap - before
        if 0 <= output < outputs:
            connections.append((position, output, tap))
    return Axis(outputs, connections)


class LinearMap:
    """z = W y + b at every position of the leading dimensions."""

    def __init__(self, module: nn.Module, x: Tensor) -> None:
        self.x = x

    def forward(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        z = self.x @ weight.T
        return z if bias is None else z + bias

    def weight_gradient(self, delta: Tensor) -> Tensor:
        """The sum over examples and positions of delta y^T."""
        pairs = zip(delta.reshape(-1, delta.shape[-1]), self.x.reshape(-1, self.x.shape[-1]), strict=True)
        return sum(torch.outer(d, y) for d, y in pairs)

    def bias_gradient(self, delta: Tensor) -> Tensor:
        return delta.reshape(-1, delta.shape[-1]).sum(0)

    def backwards_through(self, weight: Tensor, delta: Tensor) -> Tensor:
        return delta @ weight

    def error(self, delta: Tensor) -> Tensor:
        return delta

    def project(self, feedback: Tensor, error: Tensor) -> Tensor:
        if error.shape[:-1] == self.x.shape[:-1]:
            return error @ feedback
        result = torch.zeros_like(self.x)
        if self.x.dim() == 1:
            return result + per_example(error).sum(0) @ feedback
        places = self.x.shape[1:-1]
        if error.dim() == self.x.dim() >= 4:
            for place in itertools.product(*map(range, places)):
                result[(slice(None), *place)] = heard_at(error, place, places) @ feedback
            return result
        for example, e in enumerate(per_example(error)):
            result[example] += e @ feedback  # the same at every position
        return result


class ConvolutionMap:
    """z = sum over connections of (matrix of the tap) times (input at the connection's input position)."""

    axis = staticmethod(convolution_axis)
    transposed = False

    def __init__(self, module: nn.Module, x: Tensor) -> None:
        self.unbatched = x.dim() == len(module.kernel_size) + 1
        x = x[None] if self.unbatched else x
        self.size, self.groups, self.kernel_size = x.shape[2:], module.groups, module.kernel_size
        self.x = x.flatten(2)  # (N, C, positions)
        axes = [self.axis(module, axis, size) for axis, size in enumerate(self.size)]
        self.output_size = [axis.outputs for axis in axes]
        sizes = (self.size, self.output_size, self.kernel_size)
        self.connections = [
            tuple(flat_index(position, size) for position, size in zip(zip(*triples, strict=True), sizes, strict=True))
            for triples in itertools.product(*(axis.connections for axis in axes))
        ]

    def matrices(self, weight: Tensor) -> list[Tensor]:
        """(C_out, C_in) of each tap, with zeros between groups."""
        blocks = [block.flatten(2) for block in weight.chunk(self.groups)]
        blocks = [block.transpose(0, 1) if self.transposed else block for block in blocks]
        return [torch.block_diag(*(block[:, :, tap] for block in blocks)) for tap in range(blocks[0].shape[2])]

    def forward(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        matrices = self.matrices(weight)
        z = self.x.new_zeros(len(self.x), len(matrices[0]), math.prod(self.output_size))
        for position, output, tap in self.connections:
            z[:, :, output] += self.x[:, :, position] @ matrices[tap].T
        if bias is not None:
            z += bias[:, None]
        return self.unflatten(z, self.output_size)

    def weight_gradient(self, delta: Tensor) -> Tensor:
        delta = self.flatten(delta)
        taps = math.prod(self.kernel_size)
        full = delta.new_zeros(taps, delta.shape[1], self.x.shape[1])  # as if there were no groups
        for position, output, tap in self.connections:
            full[tap] += delta[:, :, output].T @ self.x[:, :, position]
        rows, columns = full.shape[1] // self.groups, full.shape[2] // self.groups
        order = (2, 1, 0) if self.transposed else (1, 2, 0)
        blocks = [row.split(columns, 2)[group].permute(order) for group, row in enumerate(full.split(rows, 1))]
        return torch.cat(blocks).unflatten(2, self.kernel_size)

    def bias_gradient(self, delta: Tensor) -> Tensor:
        return self.flatten(delta).sum((0, 2))

    def backwards_through(self, weight: Tensor, delta: Tensor) -> Tensor:
        delta, dx = self.flatten(delta), torch.zeros_like(self.x)
        matrices = self.matrices(weight)
        for position, output, tap in self.connections:
            dx[:, :, position] += delta[:, :, output] @ matrices[tap]
        return self.unflatten(dx, self.size)

    def error(self, delta: Tensor) -> Tensor:
        return (delta[None] if self.unbatched else delta).movedim(1, -1)

    def project(self, feedback: Tensor, error: Tensor) -> Tensor:
        """The kernel B (n_out, C_in, *kernel_size), ungrouped, on the error at each place of the map's output."""
        dx, places = torch.zeros_like(self.x), list(itertools.product(*map(range, self.output_size)))
        for position, output, tap in self.connections:
            e = heard_at(error, places[output], self.output_size)
            dx[:, :, position] += e @ feedback.flatten(2)[:, :, tap]
        return self.unflatten(dx, self.size)

    def flatten(self, delta: Tensor) -> Tensor:
        return (delta[None] if self.unbatched else delta).flatten(2)

    def unflatten(self, values: Tensor, size: tuple[int, ...]) -> Tensor:
        values = values.unflatten(2, tuple(size))
        return values[0] if self.unbatched else values


class TransposedConvolutionMap(ConvolutionMap):
    axis = staticmethod(transposed_axis)
    transposed = True


class SamePaddedMap(ConvolutionMap):
    axis = staticmethod(same_axis)


def flat_index(position: tuple[int, ...], size: tuple[int, ...]) -> int:
    return sum(coordinate * math.prod(size[axis + 1 :]) for axis, coordinate in enumerate(position))


def heard_at(error: Tensor, place: tuple[int, ...], grid: Sequence[int]) -> Tensor:
    """(N, n_out): the sum of the errors of the output's places that lie in a place of another grid, or around it.

    Without a place (another number of dimensions, one place alone) it is the sum over the example's.
    """
    sizes = error.shape[1:-1]
    if len(sizes) != len(grid) or math.prod(sizes) == 1:
        return per_example(error)
    total = torch.zeros_like(error[:, *[0] * len(sizes)])
    for other in itertools.product(*map(range, sizes)):
        if all(together(*axis) for axis in zip(other, sizes, place, grid, strict=True)):
            total += error[(slice(None), *other)]
    return total


def together(i: int, n: int, j: int, m: int) -> bool:
    """Whether the centre of the smaller of two parts, the i-th of n and the j-th of m, lies in the larger one."""
    (small, parts), (large, of) = ((i, n), (j, m)) if n >= m else ((j, m), (i, n))
    return Fraction(large, of) <= Fraction(2 * small + 1, 2 * parts) < Fraction(large + 1, of)


def per_example(error: Tensor) -> Tensor:
    """(N, n_out): the error summed over positions."""
    return error[None] if error.dim() == 1 else error.reshape(error.shape[0], -1, error.shape[-1]).sum(1)
