"""Functions that torch.compile leaves out of its graphs."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch

_Callable = TypeVar("_Callable", bound=Callable[..., Any])


def uncompiled(function: _Callable) -> _Callable:
    """Exclude `function` from torch.compile, at the price of a graph break, because it walks the autograd graph.

    `torch.compiler.disable` imports the compiler, which takes as long as importing torch: it is called only where
    somebody else has loaded the compiler.
    """
    disabled: list[_Callable] = []

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not disabled:
            if "torch._dynamo" not in sys.modules:
                return function(*args, **kwargs)
            disabled.append(torch.compiler.disable(function))  # type: ignore[no-untyped-call]
        return disabled[0](*args, **kwargs)

    return call  # type: ignore[return-value]
