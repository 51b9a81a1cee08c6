"""The architectures under one rule, for the import paths `biotorch.models.<method>`."""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple

from torch import nn

from biotorch._names import unknown
from biotorch.conversion import convert
from biotorch.models.registry import available, build
from biotorch.rules import from_layer_config


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
        **arguments: Any,
    ) -> nn.Module:
        rule = from_layer_config(layer_config, method)
        model = build(architecture, num_classes, pretrained, progress, **arguments)
        return convert(model, rule, copy_weights=pretrained)

    construct.__name__ = construct.__qualname__ = architecture
    construct.__module__ = f"biotorch.models.{method}"
    construct.__doc__ = f"""`{architecture}` under the rule `{method}`.

    Args:
        pretrained: start from published weights, which conversion keeps.
        progress: show their download.
        num_classes: outputs of the network; default: the architecture's.
        layer_config: `{{"type": ..., "options": {{...}}}}`; the options are the rule's. Never changed.
        **arguments: the architecture's own; see `biotorch.models.build`.
    """
    return construct
