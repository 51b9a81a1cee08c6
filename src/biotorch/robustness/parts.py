"""Parts of a network that classify alone: a defence around them can be attacked by transfer from them."""

from __future__ import annotations

import gc
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from biotorch.models.outputs import logits_of
from biotorch.robustness.attacks.attempt import classified, unseen
from biotorch.robustness.attacks.inputs import device_of, floating_type
from biotorch.robustness.identity import closure_of, globals_of

#: Number of images on which a part is tried.
_TRIED = 50
#: Largest number of parts that are attacked: each costs as much as an attack of the network.
_MOST = 3
#: Containers through which a module may hold another one that it has not registered.
_CONTAINERS = (dict, list, tuple, set, types.FunctionType, types.MethodType, nn.Module)


class _Forward(nn.Module):
    """Forward pass of a module as one of its classes defines it, without hooks and without what subclasses add."""

    def __init__(self, module: nn.Module, kind: type[nn.Module]) -> None:
        super().__init__()
        self.module, self.kind = module, kind

    def forward(self, images: Tensor) -> Any:
        return self.kind.forward(self.module, images)


def parts_that_classify(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, nn.Module]:
    """Parts of the network that map images to outputs on their own, other than the network itself, by name.

    A part is a module inside of the network, registered or held in a list, a dictionary or a closure; or the forward
    pass of a base class, which the network's own class overrides. Parts must classify at least half as many images
    right as the network does. At most three are returned, the most accurate first.

    Args:
        model: the network.
        images, labels: (n, ...) in [0, 1] and (n,), from which the first few are tried.
    """
    device = device_of(model, images)
    images, labels = images[:_TRIED].to(device, floating_type(model)), labels[:_TRIED].to(device)
    with unseen(model):
        whole = _answers(model, images)
        if whole is None:  # it takes no part of the images, such as a network with a fixed number of them
            return {}
        needed = int(classified(whole, labels).sum()) / 2
        found: dict[str, tuple[int, Tensor, nn.Module]] = {}
        for name, part in _candidates(model):
            outputs = _answers(part, images)
            if outputs is None or not int(labels.max()) < outputs.shape[1] <= whole.shape[1]:
                continue
            if any(_equal(outputs, other) for other in (whole, *(each[1] for each in found.values()))):
                continue
            right = int(classified(outputs, labels).sum())
            if right > 0 and right >= needed:
                same = sum(other.split(" (")[0] == f"part {name}" for other in found)  # parts in lists have no names
                found[f"part {name} ({same + 1})" if same else f"part {name}"] = right, outputs, part
    best = sorted(found, key=lambda name: -found[name][0])[:_MOST]
    return {name: found[name][2] for name in best}


def _answers(part: nn.Module, images: Tensor) -> Tensor | None:
    """Outputs (n, C) of a part, or None if it does not take images or returns something else."""
    try:
        with torch.no_grad():
            outputs = logits_of(part(images))
    except Exception:  # noqa: BLE001 - a part that wants something else than images may raise anything
        return None
    return outputs if outputs.dim() == 2 and len(outputs) == len(images) and outputs.is_floating_point() else None


def _equal(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and one.shape == other.shape and torch.allclose(one, other.to(one), atol=1e-5)


def _candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module that the network reaches, and each forward pass that its class overrides."""
    names = {id(module): name for name, module in model.named_modules()}
    for module in _reached(model):
        name = names.get(id(module)) or ("" if module is model else type(module).__name__)
        if module is not model:
            yield name, module
        hooked = bool(module._forward_hooks or module._forward_pre_hooks)
        for kind in type(module).__mro__[not hooked :]:
            if kind is not nn.Module and issubclass(kind, nn.Module) and "forward" in vars(kind):
                yield ".".join(filter(None, [name, f"{kind.__name__}.forward"])), _Forward(module, kind)


def _reached(model: nn.Module) -> Iterator[nn.Module]:
    """Modules that the network holds in whatever container, or that its functions use, itself included, each once."""
    left: list[Any] = [model]
    seen: set[int] = set()
    while left:
        each = left.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, nn.Module):
            yield each
            methods = (method for kind in type(each).__mro__ for method in vars(kind).values())
            left += [method for method in methods if isinstance(method, types.FunctionType)]
        inside = _used(each) if isinstance(each, types.FunctionType) else gc.get_referents(each)
        left += [other for other in inside if isinstance(other, _CONTAINERS)]


def _used(function: types.FunctionType) -> list[Any]:
    """What a function holds in its closure and its defaults, and the modules that it uses by a global name."""
    named = [each for each in globals_of(function).values() if isinstance(each, nn.Module)]
    return [*closure_of(function).values(), function.__defaults__, *named]
