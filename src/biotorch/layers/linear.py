"""The linear layer: its map, its derivative, its direct projection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from biotorch.autograd import Gradients, Operation
from biotorch.layers.base import FeedbackLayer, register_layer


class Product(NamedTuple):
    """y = x W^T + b over the last dimension, any number of leading ones."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # Beyond two dimensions F.linear returns a view, and autograd forbids to change a view that was
        # made inside a Function in place (a following ReLU(inplace=True)); a detached alias is none.
        return F.linear(x, weight, bias).detach()

    def backward(self, dy: Tensor, x: Tensor, weight: Tensor, mask: Sequence[bool]) -> Gradients:
        dx = dy @ weight if mask[0] else None
        rows = dy.reshape(-1, dy.shape[-1])
        dw = rows.T @ x.reshape(-1, x.shape[-1]) if mask[1] else None
        return dx, dw, rows.sum(0) if mask[2] else None

    def output_error(self, dy: Tensor) -> Tensor:
        return dy

    def project(self, error: Tensor, feedback: Tensor, x: Tensor) -> Tensor:
        """B e: position by position where error and input share their positions, else the same for all."""
        if error.shape[:-1] == x.shape[:-1]:
            return error @ feedback
        if x.dim() == 1:
            return error.reshape(-1, error.shape[-1]).sum(0) @ feedback
        projected = per_example(error) @ feedback
        positions = [1] * (x.dim() - 2)
        return projected.view(x.shape[0], *positions, -1).expand(x.shape)


def per_example(error: Tensor) -> Tensor:
    """The error (N, ..., n_out) summed over all positions: (N, n_out)."""
    if error.dim() == 1:
        return error.unsqueeze(0)
    return error.flatten(1, -2).sum(1) if error.dim() > 2 else error


@register_layer(nn.Linear)
class Linear(FeedbackLayer, nn.Linear):
    """`torch.nn.Linear` under a learning rule. Input (*, in_features), output (*, out_features)."""

    def operation(self, x: Tensor) -> tuple[Tensor, Operation]:
        return x, Product()

    @property
    def projection_shape(self) -> tuple[int, ...]:
        return (self.in_features,)

    @property
    def output_size(self) -> int:
        return self.out_features
