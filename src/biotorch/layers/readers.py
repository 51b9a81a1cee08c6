"""Modules that read the weights of their linear layers instead of calling them (Swin, BEiT).

Converting such a layer would change nothing, silently. Under a reader the call of F.linear with the weight of
a feedback layer becomes a call of that layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from biotorch.layers.base import FeedbackLayer

#: By qualified name (nothing is imported to compare): modules that are known to read their layers' weights.
_READING = {
    "timm.models.beit.Attention",
    "timm.models.eva.EvaAttention",
    "timm.models.swin_transformer_v2.WindowAttention",
    "torchvision.models.swin_transformer.ShiftedWindowAttention",
    "torchvision.models.swin_transformer.ShiftedWindowAttentionV2",
}

_TYPES: dict[type[nn.Module], type[Reader]] = {}


class _Routed(TorchFunctionMode):
    """Inside, `F.linear(x, layer.weight, bias)` is `layer(x, bias)`."""

    def __init__(self, layers: Iterable[FeedbackLayer]) -> None:
        super().__init__()
        self.layers = {id(layer.weight): layer for layer in layers}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.linear:
            return func(*args, **kwargs)
        given = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
        layer, bias = self.layers.get(id(given["weight"])), given.get("bias")
        if layer is None:
            return func(*args, **kwargs)
        return layer(given["input"]) if bias is layer.bias else layer(given["input"], bias)


class Reader(nn.Module):
    """Mixin for a module that reads the weights of the layers inside it."""

    #: The type that becomes one, and goes back to it.
    torch_type: ClassVar[type[nn.Module]]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return super().forward(*args, **kwargs)
        with _Routed(module for module in self.modules() if isinstance(module, FeedbackLayer)):
            return super().forward(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class is made when it is needed: a pickle names the one that it was made of.
        return _rebuild, (self.torch_type, self.__dict__)


def reading_type(kind: type[nn.Module]) -> type[Reader] | None:
    """The reader made of exactly `kind`, or None where it calls its layers like any other module, or is one."""
    if issubclass(kind, Reader):
        return None
    if kind not in _TYPES and f"{kind.__module__}.{kind.__qualname__}" in _READING:
        _TYPES[kind] = type(kind.__name__, (Reader, kind), {"torch_type": kind, "__module__": kind.__module__})
    return _TYPES.get(kind)


def _rebuild(kind: type[nn.Module], state: dict[str, Any]) -> nn.Module:
    reader = reading_type(kind)
    assert reader is not None
    module = reader.__new__(reader)
    module.__setstate__(state)  # type: ignore[no-untyped-call]
    return module
