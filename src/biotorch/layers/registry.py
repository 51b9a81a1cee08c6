"""Which torch layer types have a feedback version."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import TypeVar

from torch import nn

from biotorch.layers.base import FeedbackLayer

#: The feedback version of each torch layer type that converts; `register_layer` adds to it.
LAYER_TYPES: dict[type[nn.Module], type[FeedbackLayer]] = {}

#: Layer types of libraries that are not imported before one of their layers is met: the module that registers them.
_ON_DEMAND = {
    "timm.layers.conv2d_same.Conv2dSame": "biotorch.layers.timm",
    "timm.layers.linear.Linear": "biotorch.layers.timm",
    "transformers.pytorch_utils.Conv1D": "biotorch.layers.huggingface",
}

_Layer = TypeVar("_Layer", bound="type[FeedbackLayer]")


def register_layer(torch_type: type[nn.Module]) -> Callable[[_Layer], _Layer]:
    """Class decorator: the feedback layer that `biotorch.convert` makes of exactly `torch_type`.

    Raises:
        TypeError: the class derives not from both FeedbackLayer and `torch_type`, FeedbackLayer first.
        ValueError: `torch_type` is registered already.
    """

    def add(layer_type: _Layer) -> _Layer:
        if not isinstance(layer_type, type) or not isinstance(torch_type, type):
            raise TypeError("register_layer(torch_type) decorates a class, and torch_type is one")
        if torch_type in LAYER_TYPES:
            raise ValueError(f"{torch_type.__name__} has a feedback version: {LAYER_TYPES[torch_type].__name__}")
        order = layer_type.__mro__
        if not issubclass(layer_type, FeedbackLayer) or torch_type not in order:
            raise TypeError(f"{layer_type.__name__} must derive from FeedbackLayer and {torch_type.__name__}")
        if order.index(torch_type) < order.index(FeedbackLayer):
            raise TypeError(f"{layer_type.__name__} must name FeedbackLayer before {torch_type.__name__}")
        layer_type.torch_type = torch_type
        LAYER_TYPES[torch_type] = layer_type
        return layer_type

    return add


def feedback_type(torch_type: type[nn.Module]) -> type[FeedbackLayer] | None:
    """The feedback version of exactly `torch_type`, or None; a feedback layer's is its own."""
    if issubclass(torch_type, FeedbackLayer):
        return torch_type
    if torch_type not in LAYER_TYPES:
        home = _ON_DEMAND.get(f"{torch_type.__module__}.{torch_type.__qualname__}")
        if home is not None:
            importlib.import_module(home)
    return LAYER_TYPES.get(torch_type)


@contextlib.contextmanager
def as_feedback(layer: nn.Module) -> Iterator[FeedbackLayer]:
    """The layer with the class it will have, to be asked about shapes."""
    before: type[nn.Module] = layer.__class__
    layer.__class__ = feedback_type(before) or before
    try:
        assert isinstance(layer, FeedbackLayer)
        yield layer
    finally:
        layer.__class__ = before  # type: ignore[assignment]
