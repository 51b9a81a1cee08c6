"""Linear and bilinear layers, which multiply the last dimension by a matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from biotorch.kernel.projection import Gradients, Operation
from biotorch.layers.base import FeedbackLayer
from biotorch.layers.registry import register_layer


class Product(NamedTuple):
    """y = x W^T + b over the last dimension, with any number of leading dimensions; the batch is `batch_dim`.

    Examples:
        >>> x, weight = torch.randn(2, 4), torch.randn(3, 4)
        >>> torch.equal(biotorch.layers.Product().forward(x, weight, None), nn.functional.linear(x, weight))
        True
    """

    batch_dim: int = 0
    time_major: bool = False
    #: First row and last row + 1 if the product uses only some rows of W; None for all of W.
    rows: tuple[int, int] | None = None

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # Beyond two dimensions F.linear returns a view. Autograd forbids in-place changes (a following
        # ReLU(inplace=True)) of a view that was made inside a Function; a detached alias is no such view.
        return F.linear(x, self._part(weight), bias).detach()

    def backward(self, dy: Tensor, x: Tensor, weight: Tensor, mask: Sequence[bool]) -> Gradients:
        dx = dy @ self._part(weight) if mask[0] else None
        flat, dw = dy.reshape(-1, dy.shape[-1]), None  # (all positions, n_out)
        if mask[1]:
            # `flatten` returns a matrix as it is; a sparse one, which `reshape` refuses, has a dense product.
            dw = flat.T @ (x.flatten(0, -2) if x.dim() > 1 else x[None])
            if self.rows is not None:
                dw = dw.new_zeros(weight.shape).index_copy_(0, torch.arange(*self.rows, device=dw.device), dw)
        return dx, dw, flat.sum(0) if mask[2] else None

    def _part(self, weight: Tensor) -> Tensor:
        return weight if self.rows is None else weight[slice(*self.rows)]

    def output_error(self, dy: Tensor) -> Tensor:
        return dy

    def positions(self, x: Tensor) -> tuple[int, ...]:
        return tuple(x.shape[:-1])

    def grid(self, x: Tensor) -> tuple[int, ...]:
        return ()

    def arranged(self, error: Tensor, align: Callable[[Tensor], Tensor]) -> Tensor:
        return align(error)

    def spread(self, projected: Tensor, x: Tensor) -> Tensor:
        return projected.expand(x.shape)

    def carried(self, error: Tensor, rows: Tensor, x: Tensor, mask: tuple[bool, bool]) -> list[Tensor]:
        raise NotImplementedError("a product has no kernel")

    def spread_adjoint(self, x: Tensor, shape: torch.Size) -> Tensor:
        return x.sum_to_size(shape)


class MatrixLayer(FeedbackLayer):
    """A layer whose linear map is one product with W."""

    def operation(self, x: Tensor) -> tuple[Tensor, Operation]:
        return x, Product(self.batch_dim, self.batch_dim == 1)

    def carry_nested(self, parameter: str, x: Tensor, bias: Tensor | None, operation: Operation) -> Tensor:
        """Apply the product to the rows (all positions, in) of a jagged tensor, the examples one after the other."""
        label = self.label or type(self).__name__
        if self.rule.direct or self.output is not None:
            raise TypeError(
                f"{label}: a direct rule brings each example its own error, and rows of a nested tensor do not tell "
                "whose they are: pad the examples, x.to_padded_tensor(0.0), and mask the padding"
            )
        if x.layout is not torch.jagged or not x.is_contiguous():
            raise TypeError(
                f"{label} takes nested tensors of layout=torch.jagged, ragged in dimension 1 and without gaps"
            )
        rows = self.carry(parameter, x.values(), bias, operation)
        return torch.nested.nested_tensor_from_jagged(rows, x.offsets())  # type: ignore[attr-defined]


@register_layer(nn.Linear)
class Linear(MatrixLayer, nn.Linear):
    """`torch.nn.Linear` under a learning rule. Input `(*, in_features)`, output `(*, out_features)`.

    Examples:
        >>> layer = biotorch.layers.Linear(4, 3, rule="dfa", output_dim=10)
        >>> layer(torch.randn(2, 4)).shape, layer.feedback.shape  # B: (outputs of the network, in_features)
        (torch.Size([2, 3]), torch.Size([10, 4]))
    """

    def forward(self, input: Tensor, bias: Tensor | None = None) -> Any:
        """Compute the output; `bias` replaces the layer's own, for modules that compute a bias themselves."""
        if bias is None:
            return super().forward(input)
        self.require_floating(input)
        if self.plain:
            self.begin_plain()
            return F.linear(input, self.weight, bias)
        return self.carry("weight", input, bias, Product())


@register_layer(nn.Bilinear)
class Bilinear(MatrixLayer, nn.Bilinear):
    """`torch.nn.Bilinear` under a learning rule. Inputs `(*, in1_features)` and `(*, in2_features)`.

    It is a linear layer on the outer product of its inputs, so W and B are (out_features, in1_features *
    in2_features). The gradient of one input is the gradient of the outer product, times the other input.

    Examples:
        >>> layer = biotorch.layers.Bilinear(4, 5, 3, rule="fa")
        >>> layer(torch.randn(2, 4), torch.randn(2, 5)).shape, layer.feedback.shape
        (torch.Size([2, 3]), torch.Size([3, 20]))
    """

    def forward(self, input1: Tensor, input2: Tensor) -> Any:
        return super().forward(input1, input2)

    def entry(self, x: Tensor) -> Operation:
        raise RuntimeError(f"{self.label}: a residual block that begins with a Bilinear layer cannot be cut")

    def operation(self, x: Tensor, other: Tensor) -> tuple[Tensor, Operation]:  # type: ignore[override]
        outer = x.unsqueeze(-1) * other.unsqueeze(-2)  # (*, in1_features, in2_features)
        return super().operation(outer.flatten(-2))

    def orient(self, matrix: Tensor) -> Tensor:
        return matrix.flatten(1)
