"""Multilayer perceptron."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from biotorch._names import unknown

#: Elementwise activations without arguments, by lower-case name.
ACTIVATIONS: dict[str, type[nn.Module]] = {
    kind.__name__.casefold(): kind
    for kind in (
        nn.CELU,
        nn.ELU,
        nn.GELU,
        nn.Hardswish,
        nn.Hardtanh,
        nn.Identity,
        nn.LeakyReLU,
        nn.Mish,
        nn.ReLU,
        nn.ReLU6,
        nn.SELU,
        nn.Sigmoid,
        nn.SiLU,
        nn.Softplus,
        nn.Softsign,
        nn.Tanh,
    )
}

#: Most hidden layers.
_DEEPEST = 10_000


class MLP(nn.Module):
    """Blocks of linear layer, norm, activation and dropout, and a linear head: (N, *) -> (N, num_classes).

    Examples:
        >>> model = biotorch.models.MLP(num_classes=3, in_features=8, widths=[6, 5], activation="tanh")
        >>> model(torch.randn(4, 8)).shape
        torch.Size([4, 3])
    """

    def __init__(
        self,
        num_classes: int,
        in_features: int,
        widths: Sequence[int],
        activation: str,
        dropout: float = 0.0,
        norm: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        kind = ACTIVATIONS.get(str(activation).casefold())
        if kind is None:
            raise unknown("activation of 'mlp'", activation, ACTIVATIONS)
        sizes = [in_features, *widths]
        if min(sizes) < 1:
            raise ValueError(f"in_features and widths of 'mlp' must be positive integers, not {sizes}")
        self.hidden = nn.Sequential(nn.Flatten())
        for n_in, n_out in itertools.pairwise(sizes):
            norms = [] if norm is None else [norm(n_out)]
            drops = [nn.Dropout(dropout)] if dropout else []
            self.hidden.extend([nn.Linear(n_in, n_out), *norms, kind(), *drops])
        self.head = nn.Linear(sizes[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x))  # type: ignore[no-any-return]


def mlp(
    num_classes: int = 10,
    in_features: int = 784,
    width: int | Sequence[int] = 512,
    depth: int = 2,
    activation: str = "relu",
    dropout: float = 0.0,
    batch_norm: bool = False,
    layer_norm: bool = False,
) -> nn.Module:
    """A multilayer perceptron: flatten, hidden blocks (linear, norm, activation, dropout), linear head.

    Args:
        num_classes: number of outputs.
        in_features: numbers per example; input (N, *), output (N, num_classes).
        width: units of every hidden layer, or a list with one number per layer.
        depth: number of hidden layers, unless `width` is a list. With 0 the network is linear.
        activation: name of a `torch.nn` activation, in any case; `identity` for a deep linear network.
        dropout: probability of zeroing a hidden unit during training.
        batch_norm: normalise the inputs of every activation over the batch.
        layer_norm: normalise the inputs of every activation over the layer's units.

    Raises:
        ValueError: the activation is unknown, a size is not a positive integer, `dropout` is not in [0, 1), or both
            norms are asked for.
    """
    if batch_norm and layer_norm:
        raise ValueError("'mlp' takes batch_norm or layer_norm, not both")
    if isinstance(width, int):
        if not 0 <= depth <= _DEEPEST:
            raise ValueError(f"depth of 'mlp' must be a number of hidden layers, at most {_DEEPEST:,}, not {depth!r}")
        width = [width] * depth
    norm = nn.BatchNorm1d if batch_norm else nn.LayerNorm if layer_norm else None
    return MLP(num_classes, in_features, width, activation, check_dropout("mlp", dropout), norm)


def check_dropout(network: str, dropout: float) -> float:
    """Return `dropout`. Raise ValueError, with the name of the network, unless it is a number in [0, 1)."""
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout of {network!r} must be a number from 0 to less than 1, not {dropout!r}")
    return dropout


def mlp_for(input_shape: Sequence[int], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Copy of `arguments` with `in_features` set for examples of shape `input_shape`.

    Raises:
        ValueError: `arguments` contain another `in_features`.
    """
    n = math.prod(input_shape)
    if arguments.get("in_features", n) != n:
        raise ValueError(
            f"in_features={arguments['in_features']} of 'mlp' contradicts examples of shape {tuple(input_shape)}, "
            f"which have {n} numbers; leave it out"
        )
    return {**arguments, "in_features": n}
