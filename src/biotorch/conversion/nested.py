"""Access to the tensors in a module's nested arguments and outputs: tuples, lists, mappings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from biotorch.errors import AuditError


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments from a tensor, a tuple or a mapping."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, tuple | list) else ((inputs,), {})


def differentiable(values: Any, targets: dict[str, Any], path: str) -> Any:
    """Copy nested arguments, with floating point tensors that require gradients.

    These tensors are also added to `targets`, by their path below `path`.

    Raises:
        AuditError: a tensor is sparse or nested; the audit compares gradients element by element.
    """
    if isinstance(values, dict):
        return {key: differentiable(value, targets, f"{path}.{key}") for key, value in values.items()}
    if isinstance(values, tuple | list):
        return tuple(differentiable(value, targets, f"{path}.{i}") for i, value in enumerate(values))
    if isinstance(values, Tensor) and values.is_floating_point():
        if values.layout is not torch.strided or values.is_nested:
            kind, cure = ("nested", "to_padded_tensor(0.0)") if values.is_nested else ("sparse", "to_dense()")
            raise AuditError(f"the audit takes dense inputs, and {path} is {kind}: give it a dense copy, x.{cure}")
        targets[path] = values.detach().clone().requires_grad_()
        return targets[path]
    return values


def other(values: Any, generator: torch.Generator) -> Any:
    """Copy nested arguments, with other elements in each tensor: noise of its spread, or integers of its range."""
    if isinstance(values, dict):
        return {key: other(value, generator) for key, value in values.items()}
    if isinstance(values, tuple | list):
        return tuple(other(value, generator) for value in values)
    if not isinstance(values, Tensor) or values.layout is not torch.strided or not values.numel():
        return values
    if values.is_floating_point() or values.is_complex():
        noise = torch.randn(values.shape, generator=generator).to(values)
        return values + noise * (values.std() if values.numel() > 1 and values.std() > 0 else 1)
    if values.dtype is torch.bool:
        return values
    low, high = int(values.min()), int(values.max())
    return torch.randint(low, high + 1, values.shape, generator=generator).to(values)


def detached(values: Any) -> Any:
    """Copy nested arguments (plain containers), with tensors that are cut from their autograd graph."""
    if type(values) is dict:
        return {key: detached(value) for key, value in values.items()}
    if type(values) in (tuple, list):
        return type(values)(detached(value) for value in values)
    return values.detach() if isinstance(values, Tensor) else values


def leaves(values: Any) -> list[Tensor]:
    """The tensors in nested arguments, of any type, in order."""
    if isinstance(values, Tensor):
        return [values]
    parts = values.values() if isinstance(values, Mapping) else values if isinstance(values, tuple | list) else ()
    return [tensor for part in parts for tensor in leaves(part)]


def tensors(output: Any) -> list[Tensor]:
    """The floating point tensors in a module's output, in order."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        output = list(output.values())
    elif dataclasses.is_dataclass(output):
        output = list(vars(output).values())
    if isinstance(output, tuple | list):
        return [tensor for part in output for tensor in tensors(part)]
    return []


def functional(output: Any, generator: torch.Generator) -> Tensor:
    """A random linear functional of a model's output, whose gradient is a random error vector."""
    found = [tensor for tensor in tensors(output) if tensor.requires_grad]
    if not found:
        raise AuditError("no output of the model requires a gradient: are all parameters frozen?")
    noises = (torch.randn(tensor.shape, generator=generator).to(tensor) for tensor in found)
    return torch.stack([(tensor * noise).sum() for tensor, noise in zip(found, noises, strict=True)]).sum()
