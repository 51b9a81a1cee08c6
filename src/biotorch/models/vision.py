"""torchvision's classification networks, from scratch or from published weights with another head."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torchvision
from torch import nn

from biotorch.names import unknown

#: Arguments that the builders of MobileNetV3 take beside those of its class.
_MOBILENET_V3 = ("width_mult", "reduced_tail", "dilated")


def names() -> list[str]:
    """The names of torchvision's classification networks."""
    found: list[str] = torchvision.models.list_models(module=torchvision.models)
    return found


def argument_names(name: str) -> list[str]:
    """The keyword arguments that torchvision's network of that name takes, beside the number of classes."""
    network = inspect.signature(torchvision.models.get_model_builder(name)).return_annotation
    parameters = inspect.signature(network).parameters.values()
    own = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name != "num_classes"]
    return own + list(_MOBILENET_V3) if name.startswith("mobilenet_v3") else own


def implied_by_weights(name: str) -> dict[str, Any]:
    """Arguments that torchvision sets with the published weights of a network, and that no state_dict holds."""
    return {"transform_input": True} if name in names() and "transform_input" in argument_names(name) else {}


def build(
    name: str,
    num_classes: int | None,
    pretrained: bool,
    progress: bool,
    input_shape: Sequence[int] | None,
    arguments: Mapping[str, Any],
) -> nn.Module:
    """torchvision's network of that name; its outputs are the logits, in training mode as well.

    Auxiliary heads (GoogLeNet, Inception v3), which turn the outputs into a tuple, are there only with
    `aux_logits=True`. Published weights keep every module but the heads, and those too if `num_classes`
    is theirs. A vision transformer from scratch is built for the size of the images in `input_shape`.

    Raises:
        ValueError: arguments that the network, or its weights, do not take.
    """
    known = argument_names(name)
    for argument in arguments:
        if argument not in known:
            raise unknown(f"argument of {name!r}", argument, known)
    given = dict(arguments)
    auxiliary = given.pop("aux_logits", False)
    if auxiliary:
        given["aux_logits"] = True  # False contradicts the published weights, which have these heads
    scratch = {"init_weights": True, **given} if "aux_logits" in known else given  # their default, without its warning
    if pretrained:
        weights = torchvision.models.get_model_weights(name).DEFAULT
        model = _create(name, weights=weights, progress=progress, **given)
        if num_classes not in (None, len(weights.meta["categories"])):
            _take_heads(model, _create(name, num_classes=num_classes, **scratch), num_classes)
    else:
        if "image_size" in known and input_shape is not None:
            scratch = {"image_size": input_shape[-1], **scratch}
        model = _create(name, num_classes=1000 if num_classes is None else num_classes, **scratch)
    if not auxiliary:
        _drop_auxiliary_heads(model)
    return model


def _create(name: str, **arguments: Any) -> nn.Module:
    try:
        model: nn.Module = torchvision.models.get_model(name, **arguments)
    except (TypeError, AssertionError) as error:  # how torchvision refuses a value, or what the builder sets itself
        raise ValueError(f"{name!r} cannot be built with these arguments: {error}") from error
    return model


def _take_heads(model: nn.Module, fresh: nn.Module, num_classes: int | None) -> None:
    """Put the modules of `fresh` with another number of rows, which are the classes, into `model`.

    Other dimensions do not count: position embeddings depend on the image size of the weights.
    """
    replacements = dict(fresh.named_modules())
    for name, module in list(model.named_modules()):
        if _rows(module) != _rows(replacements[name]):
            model.set_submodule(name, replacements[name])
    if hasattr(model, "num_classes"):
        setattr(model, "num_classes", num_classes)  # noqa: B010 - an int, where typed modules hold tensors


def _rows(module: nn.Module) -> dict[str, Any]:
    """The first dimension of each parameter that the module itself owns."""
    return {name: p.shape[:1] for name, p in module._parameters.items() if p is not None}


def _drop_auxiliary_heads(model: nn.Module) -> None:
    if getattr(model, "aux_logits", False):
        for name, value in {"aux_logits": False, "aux1": None, "aux2": None, "AuxLogits": None}.items():
            if hasattr(model, name):
                setattr(model, name, value)
