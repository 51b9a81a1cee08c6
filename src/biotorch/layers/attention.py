"""Multi-head attention whose four projections are under a learning rule; the attention itself is unchanged."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from biotorch.layers.base import FeedbackLayer
from biotorch.layers.linear import Product
from biotorch.layers.registry import register_layer, require_no_hook
from biotorch.layers.tracing import as_leaf, is_traced


@register_layer(nn.MultiheadAttention)
class MultiheadAttention(FeedbackLayer, nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` under a learning rule, with torch's arguments, shapes and outputs.

    The projections of query, key and value have one B together, `in_proj_feedback`, or if kdim or vdim differ one
    each (`q_proj_feedback` and so on). The output projection has `out_proj_feedback`. Softmax and the products of
    queries, keys and values have no weights, so their gradient is the true one.

    Examples:
        >>> layer = biotorch.layers.MultiheadAttention(8, 2, batch_first=True, rule="fa")
        >>> x = torch.randn(4, 5, 8)
        >>> layer(x, x, x)[0].shape, layer.in_proj_feedback.shape
        (torch.Size([4, 5, 8]), torch.Size([24, 8]))
    """

    owned = ("out_proj",)

    @classmethod
    def obstacle(cls, layer: nn.Module) -> str:
        assert isinstance(layer, nn.MultiheadAttention)
        if reason := super().obstacle(layer):
            return reason
        if layer.bias_k is not None or layer.bias_v is not None:
            return "add_bias_kv=True appends learned keys and values, which have no feedback version"
        return "add_zero_attn=True has no feedback version" if layer.add_zero_attn else ""

    @property
    def weight_names(self) -> Sequence[str]:  # type: ignore[override]
        if self._qkv_same_embed_dim:
            return ("in_proj_weight", "out_proj.weight")
        return ("q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight")

    def oriented(self, parameter: str) -> Tensor:
        owner, _, name = parameter.rpartition(".")
        module = self.get_submodule(owner)
        if owner:
            require_no_hook(self, module, name)
        weight: Tensor = getattr(module, name)
        return weight

    @property
    def output_size(self) -> None:
        return None

    def operation(self, x: Tensor) -> tuple[Tensor, Product]:
        """The operation on the input of a residual block that begins with this layer."""
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
        """Compute the output, and the attention weights (N, T, S) or None without `need_weights`, as torch does."""
        if is_traced(query):
            rest = key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            return as_leaf(self, query, key, value, *rest)  # type: ignore[no-any-return]
        self.require_floating(query)
        if self.plain:
            self.begin_plain()
            masks = key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            return nn.MultiheadAttention.forward(self, query, key, value, *masks)
        self._check(query, key, value, key_padding_mask, attn_mask)
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal is only a hint about attn_mask, and attn_mask is missing")
        batched = query.dim() == 3
        time_major = batched and not self.batch_first
        q, k, v = self._projected(query, key, value, time_major)  # q (N, heads, T, head_dim); k, v with S positions
        mask = _additive(attn_mask, key_padding_mask, q)  # broadcastable to (N, heads, T, S)
        dropout, weights = self.dropout if self.training else 0.0, None
        if need_weights:
            scores = (q * math.sqrt(1 / self.head_dim)) @ k.transpose(-2, -1)  # (N, heads, T, S)
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            attended = weights @ v  # (N, heads, T, head_dim)
            weights = weights.mean(1) if average_attn_weights else weights  # (N, T, S) or (N, heads, T, S)
        else:
            hinted = is_causal and key_padding_mask is None  # torch then uses the hint instead of the mask
            attended = F.scaled_dot_product_attention(q, k, v, None if hinted else mask, dropout, is_causal=hinted)
        joined = attended.transpose(1, 2).flatten(2)  # (N, T, embed_dim)
        y = self.carry("out_proj.weight", joined, self.out_proj.bias, Product(0, time_major))
        if not batched:
            return y.squeeze(0), None if weights is None else weights.squeeze(0)
        return y.transpose(0, 1) if time_major else y, weights

    def _check(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None, attn_mask: Tensor | None
    ) -> None:
        """Refuse the inputs that torch refuses, which would otherwise be broadcast."""
        label = self.label or type(self).__name__
        dims = {query.dim(), key.dim(), value.dim()}
        if len(dims) > 1 or not dims <= {2, 3}:
            raise ValueError(
                f"{label}: query, key and value must have the same number of dimensions: (positions, features), or "
                "three with a batch"
            )
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
                raise TypeError(f"{label}: {name} is boolean (True means masked) or floating point, not {mask.dtype}")
            if tuple(mask.shape) not in allowed[name]:
                shapes = " or ".join(str(shape) for shape in allowed[name])
                raise ValueError(f"{label}: {name} has shape {tuple(mask.shape)}, but needs {shapes}")

    def _projected(self, query: Tensor, key: Tensor, value: Tensor, time_major: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Project to queries, keys and values, each (N, heads, positions, head_dim)."""

        def arranged(x: Tensor) -> Tensor:  # (N, positions, features)
            return x.unsqueeze(0) if x.dim() == 2 else x.transpose(0, 1) if time_major else x

        bias, size, product = self.in_proj_bias, self.embed_dim, Product(0, time_major)
        if not self._qkv_same_embed_dim:
            biases = [None] * 3 if bias is None else bias.chunk(3)
            named = zip(self.weight_names[:3], (query, key, value), biases, strict=True)
            parts = [self.carry(name, arranged(x), b, product) for name, x, b in named]
        else:
            # Query, key and value that are the same tensor take one product, with their rows of the weight.
            groups = _same(query, key, value)
            parts = []
            for first, last in groups:
                rows = slice(first * size, (last + 1) * size)
                x, b = arranged((query, key, value)[first]), None if bias is None else bias[rows]
                operation = product._replace(rows=(rows.start, rows.stop)) if len(groups) > 1 else product
                y = self.carry("in_proj_weight", x, b, operation)  # (N, positions, (last - first + 1) * embed_dim)
                parts += y.chunk(last - first + 1, -1)
        q, k, v = (part.view(*part.shape[:2], self.num_heads, self.head_dim).transpose(1, 2) for part in parts)
        return q, k, v


def _same(query: Tensor, key: Tensor, value: Tensor) -> list[tuple[int, int]]:
    """Runs (first, last) of query, key and value (0, 1, 2) that are the same tensor."""
    if query is key and key is value:
        return [(0, 2)]
    if key is value:
        return [(0, 0), (1, 2)]
    return [(0, 1), (2, 2)] if query is key else [(0, 0), (1, 1), (2, 2)]


def _additive(attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor) -> Tensor | None:
    """Join both masks to one that is added to the scores (N, heads, T, S). In boolean masks True means masked."""
    total = None
    if attn_mask is not None:
        total = _floating(attn_mask, q.dtype)
        if total.dim() == 3:
            total = total.view(-1, q.shape[1], *total.shape[1:])  # (N * heads, T, S) -> (N, heads, T, S)
    if key_padding_mask is not None:
        padding = _floating(key_padding_mask, q.dtype)
        padding = padding.view(-1, 1, 1, padding.shape[-1])  # (N, 1, 1, S)
        total = padding if total is None else total + padding
    return total


def _floating(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, -math.inf)
