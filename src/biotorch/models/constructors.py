"""Constructors of all architectures under one rule, the contents of `biotorch.models.<rule>`."""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from torch import nn

from biotorch._names import unknown
from biotorch.conversion.convert import convert
from biotorch.models.registry import available, build
from biotorch.rules import from_layer_config


def under_rule(rule: str) -> dict[str, Any]:
    """Contents of the module `biotorch.models.<rule>`: its constructors, `__all__`, `__dir__` and `__getattr__`.

    An unknown name raises AttributeError or ImportError with the nearest architecture.
    """
    found: dict[str, Any] = {name: _constructor(rule, name) for name in available()}

    def missing(name: str) -> Any:
        message = str(unknown(f"architecture in biotorch.models.{rule}", name, found))
        # In `from ... import`, Python would replace an AttributeError and lose the nearest name.
        raise ImportError(message) if _asked_by_import(sys._getframe(1)) else AttributeError(message)

    names = sorted(found)
    return {**found, "__all__": names, "__getattr__": missing, "__dir__": lambda: names}


def _asked_by_import(frame: FrameType) -> bool:
    """Whether the frame is at a `from module import name`, rather than at `module.name` or `hasattr`."""
    return frame.f_code.co_code[frame.f_lasti] == dis.opmap["IMPORT_FROM"]


def _constructor(rule: str, architecture: str) -> Callable[..., nn.Module]:
    def construct(
        pretrained: bool = False,
        progress: bool = True,
        num_classes: int | None = None,
        layer_config: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> nn.Module:
        chosen = from_layer_config(layer_config, rule)
        model = build(architecture, num_classes, pretrained, progress, **arguments)
        return convert(model, chosen, copy_weights=pretrained)

    construct.__name__ = construct.__qualname__ = architecture
    construct.__module__ = f"biotorch.models.{rule}"
    construct.__doc__ = f"""`{architecture}` under the rule `{rule}`.

    Args:
        pretrained: start from published weights, which conversion keeps.
        progress: show the download of the weights.
        num_classes: number of outputs. Default: the architecture's own.
        layer_config: `{{"type": ..., "options": {{...}}}}` with options of the rule. It is not modified.
        **arguments: arguments of the architecture, see `biotorch.models.build`.
    """
    return construct
