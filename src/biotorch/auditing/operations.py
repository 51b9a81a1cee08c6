"""Kinds of torch's operations, as the audit distinguishes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

#: Operations that move elements and compute nothing. What they make has the tags of what they read.
MOVES = frozenset(
    (
        "_to_copy",
        "clone",
        "copy_",
        "cat",
        "stack",
        "repeat",
        "repeat_interleave",
        "flip",
        "roll",
        "constant_pad_nd",
        "slice_scatter",
        "select_scatter",
        "where",
        "masked_fill",
        "masked_fill_",
        "masked_select",
        "lift_fresh_copy",
        "tril",
        "triu",
        "tril_",
        "triu_",
        "_reshape_copy",
        "index_put",
        "index_put_",
        "scatter",
        "scatter_",
        "index_copy",
        "index_copy_",
        "view_copy",
        "expand_copy",
        "permute_copy",
    )
)
#: Operations that choose elements by an index: (first operand, ...).
CHOOSE = frozenset(("index", "_unsafe_index", "index_select", "gather", "take"))
#: Lookups and norms. They use a parameter where it belongs to the activation's own unit.
LOCAL = frozenset(
    (
        "embedding",
        "embedding_bag",
        "_embedding_bag",
        "_embedding_bag_forward_only",
        "native_layer_norm",
        "native_group_norm",
        "native_batch_norm",
        "_native_batch_norm_legit",
        "_native_batch_norm_legit_no_training",
        "_native_batch_norm_legit_functional",
        "_batch_norm_with_update",
        "cudnn_batch_norm",
        "miopen_batch_norm",
        "_fused_rms_norm",
        "_prelu_kernel",
    )
)
#: Operations that scale elements and so keep what they were multiplied with.
SCALES = frozenset(("mul", "mul_", "div", "div_", "neg", "neg_", "add", "add_", "sub", "sub_", "rsub"))
#: Products, which a layer applies to its input.
PRODUCTS = frozenset(("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "convolution"))
#: Sums of elements. Norms and means are left out: they centre and scale what they were made of.
_SUMMING = frozenset(("sum", "cumsum", "_fft_r2c", "_fft_c2r", "_fft_c2c"))


def name_of(func: Any) -> str:
    """The name of an operation without its overload."""
    return func._schema.name.partition("::")[2] if hasattr(func, "_schema") else str(func)


def is_pointwise(func: Any) -> bool:
    """Whether each element of the result depends on one element of each operand."""
    return torch.Tag.pointwise in getattr(func, "tags", ())


def is_sum(func: Any) -> bool:
    """Whether an operation sums elements."""
    return name_of(func) in _SUMMING


def is_mutable(func: Any) -> bool:
    """Whether an operation may write to its arguments."""
    return hasattr(func, "_schema") and bool(func._schema.is_mutable)


def is_added(name: str, operand: Tensor, args: Any, kwargs: Any) -> bool:
    """Whether an operation adds `operand` to what it multiplies: a bias, or the mask of an attention kernel."""
    if name in ("addmm", "baddbmm", "addmv", "addbmm"):
        return operand is args[0]
    if name == "convolution":
        return operand is args[2]
    if "scaled_dot_product" in name:
        return any(operand is each for each in (kwargs.get("attn_mask"), kwargs.get("attn_bias"), *args[3:]))
    return False


def fans_out(x: Tensor, matrix: Tensor, shape: Sequence[int]) -> bool:
    """Whether one element of `x` meets many elements of a matrix, or of its row, if both are broadcast to `shape`."""
    x, spread = x.expand(shape), matrix.expand(shape)
    varying = [dim for dim, size in enumerate(shape) if size > 1 and spread.stride(dim) != 0]
    part = matrix.numel() * matrix.element_size() < matrix.untyped_storage().nbytes()
    return len(varying) > (0 if part else 1) and any(x.stride(dim) == 0 for dim in varying)
