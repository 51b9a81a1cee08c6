"""Identity of a network: a digest of everything that its answers depend on."""

from __future__ import annotations

import contextlib
import functools
import re
import types
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from biotorch import _seeding
from biotorch._files import state_hash


def identity_of(model: nn.Module) -> str:
    """Digest of a network: its tensors, including those outside its state_dict, its repr, and what neither shows.

    The last are further entries of the state_dict (extra state, packed weights), and plain attributes and functions of
    its modules, such as a threshold. Of a function it takes the code and the values that it uses.
    """
    return _identity(model, {})


def _identity(model: nn.Module, seen: dict[int, Any]) -> str:
    seen |= {id(module): module for module in model.modules()}
    tensors = {**model.state_dict(), **dict(model.named_parameters()), **dict(model.named_buffers())}
    plain = {name: value for name, value in tensors.items() if isinstance(value, Tensor) and not _is_packed(value)}
    hidden = [f"{name} {_told(tensors[name], seen)}" for name in sorted(tensors.keys() - plain.keys())]
    for place, module in model.named_modules():
        attributes = {} if _tells_all(type(module)) else vars(module)
        hidden += [
            f"{place} {name} {_told(value, seen)}"
            for name, value in sorted(attributes.items())
            if name not in _OF_EVERY_MODULE
        ]
    told = re.sub(r" at 0x[0-9a-f]+", "", repr(model))  # a function's address differs between processes
    more = f" {_seeding.derive(*hidden):016x}" if hidden else ""
    return f"{state_hash(plain)} {told}{more}"


#: Attributes in which every module keeps its tensors, submodules, hooks and mode.
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def _tells_all(kind: type[nn.Module]) -> bool:
    """Whether the repr of such a module shows its settings, as that of most layers of torch does, converted or not."""
    torchs = [each for each in kind.__mro__ if each.__module__.startswith("torch.nn.modules") and each is not nn.Module]
    shown = any("extra_repr" in vars(each) for each in torchs) and kind.__module__.startswith(("torch.", "biotorch."))
    return shown or kind.__module__.startswith("biotorch.models")


def _is_packed(tensor: Tensor) -> bool:
    return tensor.is_quantized or tensor.layout != torch.strided


def _told(value: Any, seen: dict[int, Any]) -> str:
    """Text of a value held by a module, equal in every process."""
    if hasattr(value, "__array__") and hasattr(value, "tolist") and not isinstance(value, Tensor):  # of NumPy
        value = value.tolist()
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype | torch.device):
        return repr(value)
    if isinstance(value, Tensor):
        dense = value.to_dense() if value.layout != torch.strided else value
        return state_hash({str(value.dtype): dense.dequantize() if dense.is_quantized else dense})
    if isinstance(value, tuple):
        return str([_told(each, seen) for each in value])
    if isinstance(value, set | frozenset):
        return str(sorted(_told(each, seen) for each in value))
    if id(value) in seen:
        return f"entry {list(seen).index(id(value))}"
    seen[id(value)] = value
    if isinstance(value, nn.Module):
        return _identity(value, seen)
    return f"{type(value).__module__}.{type(value).__qualname__} {_told(_parts(value), seen)}"


def _parts(value: Any) -> tuple[Any, ...]:
    """What determines an object: items, code, or attributes; nothing but its type for one that cannot be called."""
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, Mapping):
        return tuple(value.items())
    if isinstance(value, types.CodeType):
        return value.co_code, value.co_names, value.co_consts
    if isinstance(value, types.FunctionType):
        used = [*closure_of(value).items(), *((name, _own(each, value)) for name, each in globals_of(value).items())]
        return value.__code__, value.__defaults__, value.__kwdefaults__, *used
    if isinstance(value, types.MethodType):
        return value.__func__, value.__self__
    if isinstance(value, functools.partial):
        return value.func, value.args, value.keywords
    if isinstance(value, type | types.ModuleType | types.BuiltinFunctionType):
        return (value.__name__,)
    return tuple(vars(value).items()) if callable(value) and hasattr(value, "__dict__") else ()


def _own(value: Any, user: types.FunctionType) -> Any:
    """A global value as it counts for the function that uses it; of a function of another file only its name."""
    elsewhere = isinstance(value, types.FunctionType) and value.__module__ != user.__module__
    return value.__qualname__ if elsewhere else value


def closure_of(function: types.FunctionType) -> dict[str, Any]:
    """Values of the variables of an enclosing function that a function uses, by name."""
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # the variable has no value yet
            found[name] = cell.cell_contents
    return found


def globals_of(function: types.FunctionType) -> dict[str, Any]:
    """Values of the global variables that a function, or one that is defined in it, uses, by name."""
    return {name: function.__globals__[name] for name in _names_in(function.__code__) if name in function.__globals__}


def _names_in(code: types.CodeType) -> list[str]:
    """Names that code and the functions defined in it look up."""
    inner = [name for each in code.co_consts if isinstance(each, types.CodeType) for name in _names_in(each)]
    return sorted({*code.co_names, *inner})
