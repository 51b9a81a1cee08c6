"""Multi-head attention: its four projections under a learning rule, the attention itself as it is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from biotorch.layers.base import FeedbackLayer
from biotorch.layers.linear import Product
from biotorch.layers.registry import register_layer


@register_layer(nn.MultiheadAttention)
class MultiheadAttention(FeedbackLayer, nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` under a learning rule: arguments, shapes and outputs are torch's.

    The projections of query, key and value and that of the output each have a B: `in_proj_feedback`, or
    `q_proj_feedback` and so on where kdim or vdim differ, and `out_proj_feedback`. Softmax and the products of
    queries, keys and values hold no weights; their gradient is the true one.
    """

    owned = ("out_proj",)
    affine = False

    @classmethod
    def obstacle(cls, layer: nn.Module) -> str:
        assert isinstance(layer, nn.MultiheadAttention)
        if layer.bias_k is not None or layer.bias_v is not None:
            return "add_bias_kv=True appends learned keys and values, which have no feedback version"
        return "add_zero_attn=True has no feedback version" if layer.add_zero_attn else ""

    @property
    def weight_names(self) -> Sequence[str]:  # type: ignore[override]
        if self._qkv_same_embed_dim:
            return ("in_proj_weight", "out_proj.weight")
        return ("q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight")

    def oriented(self, parameter: str) -> Tensor:
        return self.get_parameter(parameter)

    @property
    def output_size(self) -> None:
        return None

    def operation(self, x: Tensor) -> tuple[Tensor, Product]:
        """For the input of a residual block that begins with this layer."""
        time_major = not self.batch_first and x.dim() == 3
        return x, Product(int(time_major), time_major)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As torch's: the attention's output, and with `need_weights` the weights (N, T, S), else None."""
        self.require_floating(query)
        if self.plain:
            self.begin_plain()
            masks = key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            return nn.MultiheadAttention.forward(self, query, key, value, *masks)
        self._check(query, key, value, key_padding_mask, attn_mask)
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal is a hint about attn_mask, which is missing")
        batched = query.dim() == 3
        time_major = batched and not self.batch_first
        q, k, v = self._projected(query, key, value, time_major)
        mask = _additive(attn_mask, key_padding_mask, q)
        dropout, weights = self.dropout if self.training else 0.0, None
        if need_weights:
            scores = (q * math.sqrt(1 / self.head_dim)) @ k.transpose(-2, -1)
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            attended = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            hinted = is_causal and key_padding_mask is None  # torch then takes the hint for the mask
            attended = F.scaled_dot_product_attention(q, k, v, None if hinted else mask, dropout, is_causal=hinted)
        joined = attended.transpose(1, 2).flatten(2)
        y = self.carry("out_proj.weight", joined, self.out_proj.bias, Product(0, time_major))
        if not batched:
            return y.squeeze(0), None if weights is None else weights.squeeze(0)
        return y.transpose(0, 1) if time_major else y, weights

    def _check(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None, attn_mask: Tensor | None
    ) -> None:
        """Refuse what torch refuses, instead of broadcasting it."""
        label = self.label or type(self).__name__
        dims = {query.dim(), key.dim(), value.dim()}
        if len(dims) > 1 or not dims <= {2, 3}:
            raise ValueError(f"{label}: query, key and value are all (positions, features) or all have a batch")
        batch_dim = 0 if self.batch_first else 1
        batched = query.dim() == 3
        n = query.shape[batch_dim] if batched else 1
        if batched and not n == key.shape[batch_dim] == value.shape[batch_dim]:
            raise ValueError(f"{label}: query, key and value have different numbers of examples")
        t, s = (x.shape[1 - batch_dim] if batched else len(x) for x in (query, key))
        allowed: dict[str, list[tuple[int, ...]]]
        allowed = {"attn_mask": [(t, s), (n * self.num_heads, t, s)], "key_padding_mask": [(n, s) if batched else (s,)]}
        for name, mask in {"attn_mask": attn_mask, "key_padding_mask": key_padding_mask}.items():
            if mask is None:
                continue
            if mask.dtype != torch.bool and not mask.is_floating_point():
                raise TypeError(f"{label}: {name} is boolean (True: masked) or floating point, not {mask.dtype}")
            if tuple(mask.shape) not in allowed[name]:
                shapes = " or ".join(str(shape) for shape in allowed[name])
                raise ValueError(f"{label}: {name} has shape {tuple(mask.shape)}, needed is {shapes}")

    def _projected(self, query: Tensor, key: Tensor, value: Tensor, time_major: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (N, heads, positions, head_dim)."""

        def arranged(x: Tensor) -> Tensor:
            return x.unsqueeze(0) if x.dim() == 2 else x.transpose(0, 1) if time_major else x

        bias, size, product = self.in_proj_bias, self.embed_dim, Product(0, time_major)
        if not self._qkv_same_embed_dim:
            biases = [None] * 3 if bias is None else bias.chunk(3)
            named = zip(self.weight_names[:3], (query, key, value), biases, strict=True)
            parts = [self.carry(name, arranged(x), b, product) for name, x, b in named]
        else:
            # One product for all that read the same input, over their rows of the weight.
            groups = _same(query, key, value)
            parts = []
            for first, last in groups:
                rows = slice(first * size, (last + 1) * size)
                x, b = arranged((query, key, value)[first]), None if bias is None else bias[rows]
                operation = product._replace(rows=(rows.start, rows.stop)) if len(groups) > 1 else product
                y = self.carry("in_proj_weight", x, b, operation)
                parts += y.chunk(last - first + 1, -1)
        q, k, v = (part.view(*part.shape[:2], self.num_heads, self.head_dim).transpose(1, 2) for part in parts)
        return q, k, v


def _same(query: Tensor, key: Tensor, value: Tensor) -> list[tuple[int, int]]:
    """Which of query, key and value (0, 1, 2) are one tensor: first and last of each run."""
    if query is key and key is value:
        return [(0, 2)]
    if key is value:
        return [(0, 0), (1, 2)]
    return [(0, 1), (2, 2)] if query is key else [(0, 0), (1, 1), (2, 2)]


def _additive(attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor) -> Tensor | None:
    """Both masks as one that is added to the scores (N, heads, T, S). In a boolean one, True means masked."""
    total = None
    if attn_mask is not None:
        total = _floating(attn_mask, q.dtype)
        if total.dim() == 3:  # (N * heads, T, S)
            total = total.view(-1, q.shape[1], *total.shape[1:])
    if key_padding_mask is not None:
        padding = _floating(key_padding_mask, q.dtype)
        padding = padding.view(-1, 1, 1, padding.shape[-1])
        total = padding if total is None else total + padding
    return total


def _floating(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, -math.inf)
