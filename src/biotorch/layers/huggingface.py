"""Hugging Face's `Conv1D`, the linear layer of GPT-2. This module is imported when a network contains one."""

from __future__ import annotations

from torch import Tensor
from transformers.pytorch_utils import Conv1D as TransposedLinear

from biotorch.layers.linear import MatrixLayer
from biotorch.layers.registry import register_layer


@register_layer(TransposedLinear)
class Conv1D(MatrixLayer, TransposedLinear):  # type: ignore[misc]
    """Linear layer that keeps W as (in, out). Input (*, in), output (*, out). B is (out, in)."""

    def orient(self, matrix: Tensor) -> Tensor:
        return matrix.T
