"""Functions that torch.compile leaves out of its graphs."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch

_Callable = TypeVar("_Callable", bound=Callable[..., Any])


def uncompiled(function: _Callable) -> _Callable:
    """Exclude a hook or another function that runs eagerly from torch.compile.

    `torch.compiler.disable` imports the compiler, which takes as long as importing torch, so it is called only after
    somebody else has loaded the compiler. A compiled graph that meets the function would trace this detour, too.
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
