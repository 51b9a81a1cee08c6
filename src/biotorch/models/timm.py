"""Networks of timm, as `timm/<name>`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from biotorch.extras import require
from biotorch.names import unknown


def build(
    name: str,
    num_classes: int | None,
    pretrained: bool,
    input_shape: Sequence[int] | None,
    arguments: Mapping[str, Any],
) -> nn.Module:
    """`timm.create_model`; from scratch with the channels and, where it depends on it, the size of the images.

    Raises:
        ModuleNotFoundError: timm is not installed.
        ValueError: unknown name, or arguments that the network does not take.
    """
    timm = require("timm", "timm", f"architecture {'timm/' + name!r}")
    if not (timm.is_model(name) and ("." not in name or name in timm.list_pretrained())):
        raise unknown("architecture of timm", name, {*timm.list_models(), *timm.list_pretrained()})
    classes = {} if num_classes is None else {"num_classes": num_classes}
    sized = {}
    if not pretrained and input_shape is not None and len(input_shape) == 3:
        sized = {"in_chans": input_shape[0], "img_size": tuple(input_shape[1:])}

    def create(given: Mapping[str, Any]) -> nn.Module:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **classes, **{**given, **arguments})
        return model

    try:
        try:
            return create(sized)
        except TypeError as error:
            if "img_size" not in sized or "'img_size'" not in str(error):
                raise
            return create({"in_chans": sized["in_chans"]})  # it takes images of any size
    except (TypeError, AssertionError) as error:
        raise ValueError(f"'timm/{name}' cannot be built with these arguments: {error}") from error
