"""The layers of one method, for the import paths `biotorch.layers.<method>`."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

from biotorch import layers

_Layer = TypeVar("_Layer", bound=layers.FeedbackLayer)


class MethodLayers(NamedTuple):
    """The layer types with a rule preset, in the order that the method modules unpack them."""

    Conv1d: type[layers.Conv1d]
    Conv2d: type[layers.Conv2d]
    Conv3d: type[layers.Conv3d]
    ConvTranspose1d: type[layers.ConvTranspose1d]
    ConvTranspose2d: type[layers.ConvTranspose2d]
    ConvTranspose3d: type[layers.ConvTranspose3d]
    Linear: type[layers.Linear]


def layers_of(method: str) -> MethodLayers:
    """Subclasses of the feedback layers whose rule is `method` unless they are told otherwise."""

    def preset(layer_type: type[_Layer]) -> type[_Layer]:
        attributes = {
            "method": method,
            "__module__": f"biotorch.layers.{method}",  # where pickle finds it
            "__doc__": f"{layer_type.__doc__} The rule is `{method}` unless `layer_config` names another.",
        }
        return type(layer_type.__name__, (layer_type,), attributes)

    return MethodLayers(
        preset(layers.Conv1d),
        preset(layers.Conv2d),
        preset(layers.Conv3d),
        preset(layers.ConvTranspose1d),
        preset(layers.ConvTranspose2d),
        preset(layers.ConvTranspose3d),
        preset(layers.Linear),
    )
