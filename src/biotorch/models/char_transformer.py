"""Small decoder-only transformer for sequences of tokens (Radford et al. 2019, with untied embeddings)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class CharTransformer(nn.Module):
    """Causal pre-norm transformer: int64 tokens (N, T), T <= context -> logits (N, T, num_classes).

    Raises:
        ValueError: `heads` does not divide `width`; in the forward pass, a sequence is longer than `context`.

    Examples:
        >>> model = biotorch.models.CharTransformer(num_classes=9, context=12, width=8, depth=1, heads=2, dropout=0.0)
        >>> model(torch.randint(9, (2, 12))).shape
        torch.Size([2, 12, 9])
    """

    def __init__(self, num_classes: int, context: int, width: int, depth: int, heads: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width={width} of 'char_transformer' is not a multiple of heads={heads}")
        self.embedding = nn.Embedding(num_classes, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)
        # torch draws embeddings with std 1, which would dominate the blocks' contributions to the residual stream.
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.position.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        length, context = tokens.shape[1], self.position.num_embeddings
        if length > context:
            raise ValueError(
                f"a sequence of {length} tokens exceeds the context of {context}; build with context={length}"
            )
        x = self.embedding(tokens) + self.position(torch.arange(length, device=tokens.device))
        future = torch.ones(length, length, dtype=torch.bool, device=tokens.device).triu(1)
        for block in self.blocks:
            x = block(x, src_mask=future, is_causal=True)
        return self.head(self.norm(x))  # type: ignore[no-any-return]


def char_transformer(
    num_classes: int = 65,
    context: int = 128,
    width: int = 128,
    depth: int = 4,
    heads: int = 4,
    dropout: float = 0.0,
) -> nn.Module:
    """A GPT-style transformer over tokens: input (N, T) int64, output (N, T, num_classes).

    Args:
        num_classes: size of the vocabulary.
        context: length of the longest sequence that the network takes.
        width: units of the residual stream; the hidden layer of a block has 4 * width units.
        depth: number of blocks.
        heads: number of attention heads per block.
        dropout: probability of zeroing a unit during training.

    Raises:
        ValueError: `heads` does not divide `width`.
    """
    return CharTransformer(num_classes, context, width, depth, heads, dropout)


def char_transformer_for(input_shape: Sequence[int], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Copy of `arguments` with `context` set for sequences of shape (T,), unless it is given.

    Raises:
        ValueError: the examples are not sequences, or are longer than the given `context`.
    """
    if len(input_shape) != 1:
        raise ValueError(f"'char_transformer' takes sequences of shape (T,), not examples of {tuple(input_shape)}")
    (length,) = input_shape
    if arguments.get("context", length) < length:
        raise ValueError(
            f"context={arguments['context']} of 'char_transformer' is shorter than the sequences: {length}"
        )
    return {"context": length, **arguments}
