"""timm's own linear layer and convolution. This module is imported when a network contains one of them."""

from __future__ import annotations

from timm.layers.conv2d_same import Conv2dSame as SamePadded
from timm.layers.linear import Linear as CastingLinear
from timm.layers.padding import get_same_padding
from torch import Tensor

from biotorch.kernel.convolution import Padding
from biotorch.kernel.projection import Operation
from biotorch.layers import convolution, linear
from biotorch.layers.registry import register_layer


@register_layer(CastingLinear)
class Linear(linear.Linear, CastingLinear):
    """timm's `Linear` under a learning rule; it differs from torch's only under TorchScript."""


@register_layer(SamePadded)
class Conv2dSame(convolution.Conv2d, SamePadded):  # type: ignore[misc]
    """timm's `Conv2dSame` under a learning rule; it pads by the size of the input, as TensorFlow does."""

    def operation(self, x: Tensor) -> tuple[Tensor, Operation]:
        axes = zip(x.shape[-2:], self.kernel_size, self.stride, self.dilation, strict=True)
        totals = [get_same_padding(*axis) for axis in axes]
        amounts = tuple(part for total in reversed(totals) for part in (total // 2, total - total // 2))
        return self._padded_operation(x, Padding("zeros", amounts))
