"""Registry of feedback layers by torch type, and of modules that read the weights of their layers (Swin, BEiT)."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from biotorch.layers.base import FeedbackLayer
from biotorch.layers.tracing import as_leaf, is_traced

#: The feedback version of each convertible torch layer type; `register_layer` adds to it.
LAYER_TYPES: dict[type[nn.Module], type[FeedbackLayer]] = {}

#: Layer types of optional libraries, with the module that registers them, imported when a network has such a layer.
_ON_DEMAND = {
    "timm.layers.conv2d_same.Conv2dSame": "biotorch.layers.timm",
    "timm.layers.linear.Linear": "biotorch.layers.timm",
    "transformers.pytorch_utils.Conv1D": "biotorch.layers.huggingface",
}

_Layer = TypeVar("_Layer", bound="type[FeedbackLayer]")


def register_layer(torch_type: type[nn.Module]) -> Callable[[_Layer], _Layer]:
    """Class decorator that registers the feedback layer into which `biotorch.convert` turns exactly `torch_type`.

    Raises:
        TypeError: the class does not derive from both FeedbackLayer and `torch_type`, FeedbackLayer first.
        ValueError: `torch_type` is already registered.

    Examples:
        >>> class Scaled(nn.Linear):
        ...     def forward(self, x):
        ...         return 0.5 * super().forward(x)
        >>> @biotorch.register_layer(Scaled)
        ... class FeedbackScaled(biotorch.layers.Linear, Scaled):
        ...     def restore(self, y, x):  # after the product
        ...         return 0.5 * y
        >>> type(biotorch.convert(Scaled(4, 3), "fa")).__name__
        'FeedbackScaled'
    """

    def add(layer_type: _Layer) -> _Layer:
        if not isinstance(layer_type, type) or not isinstance(torch_type, type):
            raise TypeError("register_layer(torch_type) decorates a class, and torch_type is a class, too")
        if torch_type in LAYER_TYPES:
            raise ValueError(
                f"{torch_type.__name__} already has a feedback version: {LAYER_TYPES[torch_type].__name__}"
            )
        order = layer_type.__mro__
        if not issubclass(layer_type, FeedbackLayer) or torch_type not in order:
            raise TypeError(f"{layer_type.__name__} must derive from FeedbackLayer and {torch_type.__name__}")
        if order.index(torch_type) < order.index(FeedbackLayer):
            raise TypeError(f"{layer_type.__name__} must name FeedbackLayer before {torch_type.__name__}")
        layer_type.torch_type = torch_type
        LAYER_TYPES[torch_type] = layer_type
        return layer_type

    return add


def feedback_type(layer: nn.Module) -> type[FeedbackLayer] | None:
    """The feedback version of the layer's exact type, or None if there is none; for a feedback layer its own type.

    torch gives a parametrized layer a class of its own. What counts is the type that it had before.

    Examples:
        >>> biotorch.layers.feedback_type(nn.Linear(4, 3)), biotorch.layers.feedback_type(nn.ReLU())
        (<class 'biotorch.layers.linear.Linear'>, None)
    """
    torch_type: type[nn.Module] = parametrize.type_before_parametrizations(layer)
    if issubclass(torch_type, FeedbackLayer):
        return torch_type
    if torch_type not in LAYER_TYPES:
        home = _ON_DEMAND.get(f"{torch_type.__module__}.{torch_type.__qualname__}")
        if home is not None:
            importlib.import_module(home)
    return LAYER_TYPES.get(torch_type)


@contextlib.contextmanager
def as_feedback(layer: nn.Module) -> Iterator[FeedbackLayer]:
    """Give the layer its future class inside the `with` block, so that it can answer questions about shapes.

    Examples:
        >>> layer = nn.Linear(4, 3)
        >>> with biotorch.layers.as_feedback(layer) as future:
        ...     future.output_size
        3
        >>> type(layer).__name__, type(layer).__module__
        ('Linear', 'torch.nn.modules.linear')
    """
    before: type[nn.Module] = type(layer)
    if (kind := feedback_type(layer)) is not None:
        set_type(layer, kind)
    try:
        assert isinstance(layer, FeedbackLayer)
        with weights_at_rest([layer]):
            yield layer
    finally:
        layer.__class__ = before  # type: ignore[assignment]


def set_type(module: nn.Module, kind: type[nn.Module]) -> None:
    """Make `kind` the type of a module. A parametrized one keeps the properties that compute its tensors.

    Examples:
        >>> layer = nn.Linear(4, 3)
        >>> biotorch.layers.set_type(layer, nn.Identity)
        >>> type(layer).__name__
        'Identity'
    """
    computed = {name: found for name, found in vars(type(module)).items() if isinstance(found, property)}
    module.__class__ = kind
    if parametrize.is_parametrized(module):
        parametrize._inject_new_class(module)  # a class of torch's for this kind, which copies modules of this kind
        for name, found in computed.items():
            setattr(type(module), name, found)


@contextlib.contextmanager
def weights_at_rest(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Let parametrizations compute as in eval mode inside the `with` block; spectral_norm steps at every read else.

    Examples:
        >>> layer = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3))
        >>> with biotorch.layers.weights_at_rest([layer]):
        ...     torch.equal(layer.weight, layer.weight)  # else each read makes a step of the power iteration
        True
    """
    parametrized = [layer for layer in layers if parametrize.is_parametrized(layer)]
    computing = [module for layer in parametrized for module in layer.get_submodule("parametrizations").modules()]
    before = [module.training for module in computing]
    try:
        for module in computing:
            module.training = False
        yield
    finally:
        for module, training in zip(computing, before, strict=True):
            module.training = training


def require_no_hook(reader: nn.Module, layer: nn.Module, name: str) -> None:
    """Require that no hook of `layer` computes its weight `name`, which `reader` takes without calling `layer`.

    Raises:
        RuntimeError: the weight is computed by a hook (pruning, the old weight_norm and spectral_norm).
    """
    if name in vars(layer):
        where = getattr(layer, "label", "") or getattr(reader, "label", "") or type(reader).__name__
        raise RuntimeError(
            f"{where}: {type(reader).__name__} reads the weight of a layer inside it without calling this layer, so "
            "the hook that computes the weight (pruning, weight_norm, spectral_norm) does not run: make the weight a "
            "parameter again (prune.remove), or use one of torch.nn.utils.parametrizations"
        )


#: Modules that are known to read their layers' weights, by qualified name, so that nothing is imported to compare.
_READING = {
    "timm.models.beit.Attention",
    "timm.models.eva.EvaAttention",
    "timm.models.swin_transformer_v2.WindowAttention",
    "torchvision.models.swin_transformer.ShiftedWindowAttention",
    "torchvision.models.swin_transformer.ShiftedWindowAttentionV2",
}

_TYPES: dict[type[nn.Module], type[Reader]] = {}


class _Routed(TorchFunctionMode):
    """Turn `F.linear(x, layer.weight, bias)` into `layer(x, bias)` inside the `with` block."""

    def __init__(self, reader: nn.Module, layers: Iterable[FeedbackLayer]) -> None:
        super().__init__()
        self.reader = reader
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
        if torch.is_grad_enabled():  # the reader's own product, and not that of a layer that it calls
            require_no_hook(self.reader, layer, "weight")
        return layer(given["input"]) if bias is layer.bias else layer(given["input"], bias)


class Reader(nn.Module):
    """Mixin for a module that reads the weights of the layers inside it.

    Examples:
        >>> from torchvision.models import swin_t
        >>> model = biotorch.convert(swin_t(num_classes=3), "fa")  # its attention reads the weights of its layers
        >>> any(isinstance(each, biotorch.layers.Reader) for each in model.modules())
        True
    """

    #: The original type, which `convert` replaces by the reader and `revert` restores.
    torch_type: ClassVar[type[nn.Module]]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if any(map(is_traced, (*args, *kwargs.values()))):
            return as_leaf(self, *args, **kwargs)
        if not torch.is_grad_enabled():
            return super().forward(*args, **kwargs)
        layers = [module for module in self.modules() if isinstance(module, FeedbackLayer)]
        # A weight that is computed at every read would never be the same tensor.
        parametrized = any("parametrizations" in layer._modules for layer in layers)
        with parametrize.cached() if parametrized else contextlib.nullcontext(), _Routed(self, layers):
            return super().forward(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The reader class is made at run time, so a pickle names the original class.
        return _rebuild, (self.torch_type, self.__dict__)


def reading_type(module: nn.Module) -> type[Reader] | None:
    """The reader for exactly the module's type; None if it is a reader already or does not read its layers' weights.

    Examples:
        >>> biotorch.layers.reading_type(nn.Linear(4, 3)) is None  # it reads no other layer's weight
        True
    """
    kind: type[nn.Module] = parametrize.type_before_parametrizations(module)
    if issubclass(kind, Reader):
        return None
    if kind not in _TYPES and f"{kind.__module__}.{kind.__qualname__}" in _READING:
        _TYPES[kind] = type(kind.__name__, (Reader, kind), {"torch_type": kind, "__module__": kind.__module__})
    return _TYPES.get(kind)


def _rebuild(kind: type[nn.Module], state: dict[str, Any]) -> nn.Module:
    module = kind.__new__(kind)
    reader = reading_type(module)
    assert reader is not None
    module.__class__ = reader
    module.__setstate__(state)  # type: ignore[no-untyped-call]
    return module


def under_rule(rule: str) -> dict[str, type[FeedbackLayer]]:
    """The package's layer types by name, with `rule` as their default rule."""
    own = [each for each in LAYER_TYPES.values() if each.__module__.startswith("biotorch.layers.")]
    return {
        each.__name__: type(
            each.__name__,
            (each,),
            {
                "method": rule,
                "__module__": f"biotorch.layers.{rule}",  # where pickle finds it
                "__doc__": f"{each.__doc__} The rule is `{rule}` unless `layer_config` names another.",
            },
        )
        for each in own
        if each.torch_type.__module__.startswith("torch.nn.")
    }
