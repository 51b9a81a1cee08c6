"""Registry of architectures by name: the package's own, torchvision's, timm's and Hugging Face's."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from biotorch._names import unknown
from biotorch.errors import shortened, without_frames
from biotorch.models import zoos
from biotorch.models.char_transformer import char_transformer, char_transformer_for
from biotorch.models.convolutional import RESNETS, le_net_cifar, le_net_mnist
from biotorch.models.mlp import mlp, mlp_for
from biotorch.models.recurrent import gru, lstm, recurrent_for

#: Constructors of the package's own architectures.
OWN: dict[str, Callable[..., nn.Module]] = {
    "char_transformer": char_transformer,
    "gru": gru,
    "le_net_cifar": le_net_cifar,
    "le_net_mnist": le_net_mnist,
    "lstm": lstm,
    "mlp": mlp,
    **RESNETS,
}

#: Functions (shape, arguments) -> arguments for architectures that depend on the shape of an example.
_FITTED: dict[str, Callable[[Sequence[int], Mapping[str, Any]], dict[str, Any]]] = {
    "char_transformer": char_transformer_for,
    "gru": recurrent_for,
    "lstm": recurrent_for,
    "mlp": mlp_for,
}

#: Inputs of the architectures that read one step after another.
OF_STEPS = {"char_transformer": "tokens (T,)", **dict.fromkeys(("gru", "lstm"), "sequences (T, features)")}

#: Arguments that `_FITTED` sets.
_OF_THE_DATA = {"context", "in_features"}

#: Largest whole number that an argument takes, and words for the types of arguments.
_LARGEST = 10**9
_TYPES: dict[Any, str] = {
    bool: "true or false",
    int: f"a whole number (at most {_LARGEST:,})",
    float: "a number",
    str: "a word",
    Sequence: "a list of them",
    NoneType: "null",
}

#: Prefixes of architectures that other libraries define.
_ZOOS = ("timm", "hf")

#: Most numbers in the parameters of a network, and most parameters.
_NUMBERS, _PARAMETERS = 10**12, 5_000


def available() -> list[str]:
    """Names of the package's own and torchvision's architectures; `timm/...` and `hf/...` names are not listed.

    Examples:
        >>> {"mlp", "le_net_mnist", "resnet18"} <= set(biotorch.models.available())
        True
    """
    return sorted({*OWN, *zoos.torchvision_names()})


def check_name(name: str) -> None:
    """Raise ValueError for an unknown architecture; names of timm and Hugging Face are not looked up.

    Examples:
        >>> biotorch.models.check_name("resnet19")
        Traceback (most recent call last):
            ...
        ValueError: unknown architecture 'resnet19'. Did you mean 'resnet18' or 'resnet152'? ...
    """
    zoo, slash, rest = name.partition("/")
    if slash and zoo in _ZOOS:
        if not rest:
            raise ValueError(f"{name!r} names no architecture; write {name}<name>")
    elif name not in available():
        raise ValueError(f"{unknown('architecture', name, available())} Also valid: timm/<name> and hf/<name>.")


def build(
    name: str,
    num_classes: int | None = None,
    pretrained: bool = False,
    progress: bool = True,
    input_shape: Sequence[int] | None = None,
    **arguments: Any,
) -> nn.Module:
    """Build a plain network by name; it trains by backpropagation until it is converted.

    Args:
        name: one of `available()`; `timm/<name>`; `hf/<model type, hub id or local folder>`.
        num_classes: number of outputs (classes or targets), or the size of the vocabulary. Default: the
            architecture's own (10 for the package's architectures, 65 for `char_transformer`, 1000 for torchvision's).
        pretrained: start from published weights, which are downloaded if missing. If `num_classes` differs
            from theirs, the heads are initialised anew.
        progress: show torchvision's download.
        input_shape: shape of one example, such as (C, H, W) or (T,). `mlp` takes `in_features` from it, `lstm` and
            `gru` their `features`, and `char_transformer` its `context`. A network from scratch whose size depends on
            the image size (a vision transformer) is built for it. Other networks take any size.
        **arguments: arguments of the constructor (the package's, torchvision's or timm's), or attributes of
            the Hugging Face configuration.

    Raises:
        ValueError: a name or an argument is unknown, a value does not fit, or `pretrained` is set and no weights
            are published.
        ModuleNotFoundError: timm or transformers is needed but not installed.

    Examples:
        >>> model = biotorch.models.build("mlp", num_classes=3, input_shape=(1, 8, 8), width=16)
        >>> biotorch.convert(model, "fa")(torch.randn(2, 1, 8, 8)).shape
        torch.Size([2, 3])
    """
    check_name(name)
    try:
        return _build(name, num_classes, pretrained, progress, input_shape, arguments)
    except _REFUSALS as error:
        if not arguments:
            raise
        reason = without_frames(str(error)) or type(error).__name__
        raise ValueError(f"{name!r} cannot be built with these arguments: {reason}") from error


#: Exceptions that constructors raise for arguments which they do not take, besides ValueError.
_REFUSALS = (TypeError, AssertionError, ArithmeticError, LookupError, AttributeError, RuntimeError, MemoryError)


def _build(
    name: str,
    num_classes: int | None,
    pretrained: bool,
    progress: bool,
    input_shape: Sequence[int] | None,
    arguments: Mapping[str, Any],
) -> nn.Module:
    zoo, _, rest = name.partition("/")
    if name in OWN:
        if pretrained:
            raise ValueError(f"no pretrained weights are published for {name!r}")
        return _build_own(name, num_classes, input_shape, arguments)
    if zoo == "timm":
        return zoos.build_timm(rest, num_classes, pretrained, input_shape, arguments)
    if zoo == "hf":
        return zoos.build_huggingface(rest, num_classes, pretrained, input_shape, arguments)
    check_arguments(name, arguments)
    return zoos.build_torchvision(name, num_classes, pretrained, progress, input_shape, arguments)


def completed_arguments(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of an architecture with the defaults of its constructor filled in, if it is one of this package.

    Defaults that follow from the data are None. The arguments of other libraries' networks stay as they are, because
    their builders set defaults of their own.
    """
    if name not in OWN:
        return dict(arguments)
    parameters = inspect.signature(OWN[name]).parameters.values()
    defaults = {each.name: each.default for each in parameters if each.name != "num_classes"}
    return {**defaults, **dict.fromkeys(defaults.keys() & _OF_THE_DATA), **arguments}


def _build_own(
    name: str, num_classes: int | None, input_shape: Sequence[int] | None, arguments: Mapping[str, Any]
) -> nn.Module:
    check_arguments(name, arguments)
    if input_shape is not None and name in _FITTED:
        arguments = _FITTED[name](input_shape, arguments)
    classes = {} if num_classes is None else {"num_classes": num_classes}
    return OWN[name](**classes, **arguments)


def check_arguments(name: str, arguments: Mapping[str, Any]) -> None:
    """Check the names of arguments, and for an architecture of this package their types; timm and `hf` check theirs.

    Raises:
        ValueError: an argument is unknown, or is not of the type in the constructor's annotation. Python itself would
            take the string "no", which YAML 1.2 reads in `batch_norm: no`, for true.
    """
    if name in OWN:
        valid = [parameter for parameter in inspect.signature(OWN[name]).parameters if parameter != "num_classes"]
    else:
        valid = zoos.argument_names(name) if name in zoos.torchvision_names() else list(arguments)
    for argument in arguments:
        if argument not in valid:
            raise unknown(f"argument of {name!r}", argument, valid)
    if name in OWN:
        _require_types(name, arguments)


def _require_types(name: str, arguments: Mapping[str, Any]) -> None:
    try:
        annotations = get_type_hints(OWN[name])
    except NameError:  # of a user's own network, whose module imports names for type checkers only
        return
    for argument, value in arguments.items():
        annotation = annotations.get(argument, Any)
        kinds = get_args(annotation) or (annotation,)
        if all((get_origin(kind) or kind) in _TYPES for kind in kinds) and not any(
            _is_a(value, kind) for kind in kinds
        ):
            wanted = " or ".join(_TYPES[get_origin(kind) or kind] for kind in kinds)
            raise ValueError(f"{argument} of {name!r} is {wanted}, not {shortened(repr(value))}")


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a value has a type: true and false are no numbers, and a list is one of whole numbers."""
    if get_origin(kind) is Sequence:
        return isinstance(value, list | tuple) and all(_is_a(each, int) for each in value)
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is int:
        return isinstance(value, int) and abs(value) <= _LARGEST
    return isinstance(value, int | float if kind is float else kind)


def sketch(
    name: str, num_classes: int | None = None, input_shape: Sequence[int] | None = None, **arguments: Any
) -> nn.Module | None:
    """Build a network from scratch on the meta device, where parameters have shapes but take no memory.

    Args:
        name, num_classes, input_shape, arguments: as in `build`.

    Returns:
        The network, or None if its constructor needs the values of tensors.

    Raises:
        ValueError: as in `build`, or the network has too many parameters for any machine.
        ModuleNotFoundError: as in `build`.

    Examples:
        >>> model = biotorch.models.sketch("resnet152")
        >>> f"{sum(p.numel() for p in model.parameters()):,}", model.fc.weight.device.type
        ('60,192,808', 'meta')
    """
    with torch.device("meta"), warnings.catch_warnings(), _bounded():
        warnings.simplefilter("ignore")
        try:
            return build(name, num_classes, input_shape=input_shape, **arguments)
        except (ValueError, RuntimeError) as error:
            if "meta" in str(error) and isinstance(error.__cause__ or error, RuntimeError):
                return None
            raise


@contextmanager
def _bounded() -> Iterator[None]:
    """Context that ends the building of a network, in any thread, as soon as it has too many parameters."""
    count = size = 0

    def add(owner: nn.Module, name: str, parameter: Tensor | None) -> None:
        nonlocal count, size
        if parameter is not None:
            count, size = count + 1, size + math.prod(parameter.shape)
        if count > _PARAMETERS or size > _NUMBERS:
            raise ValueError(
                f"the network is too large: at its parameter number {count:,} it has {size:,} numbers; at most "
                f"{_PARAMETERS:,} parameters with {_NUMBERS:,} numbers are built"
            )

    handle = hooks.register_module_parameter_registration_hook(add)
    try:
        yield
    finally:
        handle.remove()
