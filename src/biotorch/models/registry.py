"""Architectures by name: the package's own and torchvision's."""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple

import torchvision
from torch import nn

from biotorch.models.cifar_resnet import RESNETS
from biotorch.models.lenet import le_net_cifar, le_net_mnist
from biotorch.module import convert
from biotorch.names import unknown
from biotorch.rules import from_layer_config

_OWN: dict[str, Callable[..., nn.Module]] = {
    "le_net_mnist": le_net_mnist,
    "le_net_cifar": le_net_cifar,
    **RESNETS,
}


def available() -> list[str]:
    """The names of all architectures."""
    return sorted({*_OWN, *_torchvision_names()})


def build(name: str, num_classes: int | None = None, pretrained: bool = False, progress: bool = True) -> nn.Module:
    """A plain network by name, trained by backpropagation until it is converted.

    Args:
        name: one of `available()`.
        num_classes: outputs; default 10 for the package's own (CIFAR, MNIST), 1000 for torchvision's.
        pretrained: torchvision's default weights, downloaded where missing.
        progress: show the download.

    Raises:
        ValueError: unknown name, `pretrained` where no weights are published, or with a number of
            classes the weights do not have.
    """
    if name in _OWN:
        if pretrained:
            raise ValueError(f"no pretrained weights are published for {name!r}")
        return _OWN[name](num_classes=10 if num_classes is None else num_classes)
    if name not in _torchvision_names():
        raise unknown("architecture", name, available())
    if not pretrained:
        model: nn.Module = torchvision.models.get_model(name, num_classes=1000 if num_classes is None else num_classes)
        return model
    if num_classes not in (None, 1000):
        raise ValueError(f"the pretrained weights of {name!r} have 1000 classes, not {num_classes}")
    model = torchvision.models.get_model(name, weights="DEFAULT", progress=progress)
    return model


def _torchvision_names() -> list[str]:
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


class _Namespace(NamedTuple):
    getattr: Callable[[str], Any]
    dir: Callable[[], list[str]]


def constructors(method: str) -> _Namespace:
    """`__getattr__` and `__dir__` of a module `biotorch.models.<method>`: its architectures under a rule."""

    def attribute(name: str) -> Any:
        if name.startswith("_") or name not in available():
            message = str(unknown(f"architecture in biotorch.models.{method}", name, available()))
            # Python would replace an AttributeError by a bare "cannot import name": keep the nearest name.
            raise ImportError(message) if _asked_by_import(sys._getframe(1)) else AttributeError(message)
        return _constructor(method, name)

    return _Namespace(attribute, available)


def _asked_by_import(frame: FrameType) -> bool:
    """Whether the frame is at a `from module import name`, rather than at `module.name` or `hasattr`."""
    return frame.f_code.co_code[frame.f_lasti] == dis.opmap["IMPORT_FROM"]


def _constructor(method: str, architecture: str) -> Callable[..., nn.Module]:
    def construct(
        pretrained: bool = False,
        progress: bool = True,
        num_classes: int | None = None,
        layer_config: dict[str, Any] | None = None,
    ) -> nn.Module:
        rule = from_layer_config(layer_config, method)
        return convert(build(architecture, num_classes, pretrained, progress), rule, copy_weights=pretrained)

    construct.__name__ = construct.__qualname__ = architecture
    construct.__module__ = f"biotorch.models.{method}"
    construct.__doc__ = f"""`{architecture}` under the rule `{method}`.

    Args:
        pretrained: start from published weights, which conversion keeps.
        progress: show their download.
        num_classes: outputs of the network (default: 10, or 1000 for torchvision's).
        layer_config: `{{"type": ..., "options": {{...}}}}`; the options are the rule's. Never changed.
    """
    return construct
