"""Recurrent classifiers and regressors (LSTM, GRU) for sequences of numbers or of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from biotorch.models.mlp import check_dropout

_KINDS = {"lstm": nn.LSTM, "gru": nn.GRU}


class RecurrentNetwork(nn.Module):
    """Recurrent layers and a linear head: numbers (N, T, features), or int64 tokens (N, T), to (N, num_classes).

    The head reads the last states of the last layer: the state after the last step, and in a bidirectional network also
    the backward direction's state after the first step. With `per_step` it reads the states of every step, and the
    output is (N, T, num_classes).

    Examples:
        >>> model = biotorch.models.build("lstm", num_classes=3, features=4, hidden_size=8)
        >>> type(model).__name__, model(torch.randn(2, 7, 4)).shape
        ('RecurrentNetwork', torch.Size([2, 3]))
    """

    def __init__(
        self,
        kind: str,
        num_classes: int,
        features: int | None,
        hidden_size: int,
        num_layers: int,
        bidirectional: bool,
        dropout: float,
        per_step: bool,
    ) -> None:
        super().__init__()
        for name, value in (("features", features or 1), ("hidden_size", hidden_size), ("num_layers", num_layers)):
            if value < 1:
                raise ValueError(f"{name} of {kind!r} must be a positive integer, not {value!r}")
        check_dropout(kind, dropout)
        self.per_step, self.directions = per_step, 2 if bidirectional else 1
        self.embedding = nn.Embedding(num_classes, hidden_size) if features is None else nn.Identity()
        self.recurrent = _KINDS[kind](
            hidden_size if features is None else features,
            hidden_size,
            num_layers,
            batch_first=True,
            dropout=dropout if num_layers > 1 else 0.0,
            bidirectional=bidirectional,
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.directions * hidden_size, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        states, last = self.recurrent(
            self.embedding(x)
        )  # (N, T, directions * hidden), (layers * directions, N, hidden)
        if not self.per_step:
            last = last[0] if isinstance(last, tuple) else last  # an LSTM also returns its cell states
            states = last[-self.directions :].transpose(0, 1).flatten(1)  # (N, directions * hidden)
        return self.head(self.dropout(states))  # type: ignore[no-any-return]


def lstm(
    num_classes: int = 10,
    features: int | None = 28,
    hidden_size: int = 128,
    num_layers: int = 1,
    bidirectional: bool = False,
    dropout: float = 0.0,
    per_step: bool = False,
) -> nn.Module:
    """A long short-term memory network over sequences: input (N, T, features), output (N, num_classes).

    Args:
        num_classes: number of outputs; for tokens also the size of the vocabulary.
        features: numbers per step; None: the steps are int64 tokens (N, T), which an embedding of `hidden_size` reads.
        hidden_size: units of every layer, in each direction.
        num_layers: number of recurrent layers.
        bidirectional: read the sequence in both directions.
        dropout: probability of zeroing a unit between two layers and in front of the head during training.
        per_step: give an output for every step, (N, T, num_classes), instead of one for the sequence.

    Raises:
        ValueError: a size is not a positive integer, or `dropout` is not in [0, 1).
    """
    return RecurrentNetwork("lstm", num_classes, features, hidden_size, num_layers, bidirectional, dropout, per_step)


def gru(
    num_classes: int = 10,
    features: int | None = 28,
    hidden_size: int = 128,
    num_layers: int = 1,
    bidirectional: bool = False,
    dropout: float = 0.0,
    per_step: bool = False,
) -> nn.Module:
    """A network of gated recurrent units over sequences: input (N, T, features), output (N, num_classes).

    The arguments are those of `lstm`.

    Raises:
        ValueError: a size is not a positive integer, or `dropout` is not in [0, 1).
    """
    return RecurrentNetwork("gru", num_classes, features, hidden_size, num_layers, bidirectional, dropout, per_step)


def recurrent_for(input_shape: Sequence[int], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Copy of `arguments` with `features` set for sequences of shape (T, features), or of tokens (T,).

    Tokens have a label at each step, so their `per_step` is true, unless it is given.

    Raises:
        ValueError: the examples are not sequences, or `arguments` contain another `features`.
    """
    if len(input_shape) not in (1, 2):
        raise ValueError(
            f"'lstm' and 'gru' take sequences (T, features) or tokens (T,), not examples of shape {tuple(input_shape)}"
        )
    features = input_shape[1] if len(input_shape) == 2 else None
    if arguments.get("features", features) != features:
        raise ValueError(
            f"features={arguments['features']} contradicts sequences of shape {tuple(input_shape)}; leave it out"
        )
    return {"per_step": features is None, **arguments, "features": features}
