"""Convolutions and transposed convolutions in one, two and three dimensions, under a learning rule."""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import Tensor, nn

from biotorch.kernel.convolution import Convolution, Dense, Padding
from biotorch.kernel.projection import Operation
from biotorch.layers.base import FeedbackLayer
from biotorch.layers.registry import register_layer
from biotorch.rules import DirectRule


class _ConvolutionLayer(FeedbackLayer):
    """Base of all convolution layers. It has the attributes of `torch.nn.modules.conv._ConvNd`."""

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def projection_shape(self, parameter: str = "weight") -> tuple[int, ...]:
        return (self.in_channels, *self.kernel_size)

    @property
    def output_size(self) -> int:
        return self.out_channels

    def dense_size(self, x: Tensor) -> tuple[int, ...]:
        return (math.prod(x.shape[-len(self.kernel_size) - 1 :]),)

    def _operation(self, x: Tensor, convolution: Convolution) -> tuple[Tensor, Operation]:
        dense = isinstance(self.rule, DirectRule) and self.rule.feedback == "dense"
        return self._batched(x), Dense(*convolution) if dense else convolution

    def _batched(self, x: Tensor) -> Tensor:
        return x if x.dim() == len(self.kernel_size) + 2 else x.unsqueeze(0)

    def restore(self, y: Tensor, x: Tensor) -> Tensor:
        return y if x.dim() == y.dim() else y.squeeze(0)


class _Conv(_ConvolutionLayer):
    padding_mode: Literal["zeros", "reflect", "replicate", "circular"]
    _reversed_padding_repeated_twice: list[int]

    def operation(self, x: Tensor) -> tuple[Tensor, Operation]:
        return self._padded_operation(x, Padding(self.padding_mode, tuple(self._reversed_padding_repeated_twice)))

    def _padded_operation(self, x: Tensor, padding: Padding) -> tuple[Tensor, Operation]:
        """Leave the padding to the convolution if it can do it: zeros, with even sides.

        The padding "same" has uneven sides if the reach of the kernel is odd.
        """
        none = (0,) * len(self.kernel_size)
        before, after = padding.amounts[0::2], padding.amounts[1::2]
        own = padding.mode == "zeros" and before == after
        inside, outside = (before[::-1], None) if own else (none, padding)
        return self._operation(
            x, Convolution(self.stride, inside, self.dilation, False, none, self.groups, self.kernel_size, outside)
        )


class _ConvTranspose(_ConvolutionLayer):
    padding: Any

    def operation(self, x: Tensor, output_size: list[int] | None = None) -> tuple[Tensor, Operation]:
        dims = len(self.kernel_size)
        output_padding = self._output_padding(  # type: ignore[operator]
            x, output_size, self.stride, self.padding, self.kernel_size, dims, self.dilation
        )
        return self._operation(
            x,
            Convolution(
                self.stride, self.padding, self.dilation, True, tuple(output_padding), self.groups, self.kernel_size
            ),
        )


@register_layer(nn.Conv1d)
class Conv1d(_Conv, nn.Conv1d):
    """`torch.nn.Conv1d` under a learning rule.

    Examples:
        >>> layer = biotorch.layers.Conv1d(3, 8, kernel_size=5, rule="fa")
        >>> layer(torch.randn(2, 3, 20)).shape, layer.feedback.shape
        (torch.Size([2, 8, 16]), torch.Size([8, 3, 5]))
    """


@register_layer(nn.Conv2d)
class Conv2d(_Conv, nn.Conv2d):
    """`torch.nn.Conv2d` under a learning rule.

    Examples:
        >>> layer = biotorch.layers.Conv2d(3, 8, kernel_size=3, padding="same", rule="usf")
        >>> layer(torch.randn(2, 3, 16, 16)).shape
        torch.Size([2, 8, 16, 16])
    """


@register_layer(nn.Conv3d)
class Conv3d(_Conv, nn.Conv3d):
    """`torch.nn.Conv3d` under a learning rule.

    Examples:
        >>> layer = biotorch.layers.Conv3d(1, 4, kernel_size=3, rule="fa")
        >>> layer(torch.randn(2, 1, 8, 8, 8)).shape
        torch.Size([2, 4, 6, 6, 6])
    """


@register_layer(nn.ConvTranspose1d)
class ConvTranspose1d(_ConvTranspose, nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d` under a learning rule.

    Examples:
        >>> layer = biotorch.layers.ConvTranspose1d(8, 3, kernel_size=4, stride=2, rule="fa")
        >>> layer(torch.randn(2, 8, 9)).shape
        torch.Size([2, 3, 20])
    """


@register_layer(nn.ConvTranspose2d)
class ConvTranspose2d(_ConvTranspose, nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` under a learning rule.

    Examples:
        >>> layer = biotorch.layers.ConvTranspose2d(8, 3, kernel_size=4, stride=2, padding=1, rule="fa")
        >>> layer(torch.randn(2, 8, 7, 7)).shape
        torch.Size([2, 3, 14, 14])
    """


@register_layer(nn.ConvTranspose3d)
class ConvTranspose3d(_ConvTranspose, nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d` under a learning rule.

    Examples:
        >>> layer = biotorch.layers.ConvTranspose3d(4, 1, kernel_size=2, stride=2, rule="fa")
        >>> layer(torch.randn(2, 4, 3, 3, 3)).shape
        torch.Size([2, 1, 6, 6, 6])
    """
