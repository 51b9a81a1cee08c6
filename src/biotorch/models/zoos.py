"""Architectures of torchvision, timm and Hugging Face."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from biotorch._names import require, unknown
from biotorch.errors import disk_is_full

#: Builders as torchvision registers them.
_REGISTERED = re.compile(r"^@register_model\(\)\n(?:@.*\n)*def (\w+)", re.MULTILINE)
#: Arguments that the builders of MobileNetV3 take beside those of its class.
_MOBILENET_V3 = ("width_mult", "reduced_tail", "dilated")


@functools.cache
def torchvision_names() -> tuple[str, ...]:
    """The names of torchvision's classification networks, read from its files, which take a second to import."""
    spec = importlib.util.find_spec("torchvision")
    files = Path(spec.origin).parent.glob("models/*.py") if spec is not None and spec.origin is not None else ()
    sources = (path.read_text(encoding="utf-8") for path in files)
    return tuple(sorted(name for source in sources for name in _REGISTERED.findall(source)))


def argument_names(name: str) -> list[str]:
    """The keyword arguments that torchvision's network of that name takes, beside the number of classes."""
    from torchvision import models

    network = inspect.signature(models.get_model_builder(name)).return_annotation
    parameters = inspect.signature(network).parameters.values()
    own = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name != "num_classes"]
    return own + list(_MOBILENET_V3) if name.startswith("mobilenet_v3") else own


def implied_by_weights(name: str) -> dict[str, Any]:
    """Arguments that torchvision sets with the published weights of a network, and that no state_dict holds."""
    return (
        {"transform_input": True} if name in torchvision_names() and "transform_input" in argument_names(name) else {}
    )


def build_torchvision(
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
        from torchvision import models

        weights = models.get_model_weights(name).DEFAULT
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
    from torchvision import models

    try:
        model: nn.Module = models.get_model(name, **arguments)
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


def build_timm(
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


class HuggingFace(nn.Module):
    """A network of transformers that returns its logits alone.

    Images (N, C, H, W) -> (N, num_classes), or int64 tokens (N, T) -> (N, T, vocabulary). The network
    itself is `network`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).logits  # type: ignore[no-any-return]


def build_huggingface(
    name: str,
    num_classes: int | None,
    pretrained: bool,
    input_shape: Sequence[int] | None,
    arguments: Mapping[str, Any],
) -> HuggingFace:
    """An image classifier, or a causal language model, by model type (`vit`, `gpt2`), hub id or folder.

    A type stands for its default configuration; `arguments` are attributes of the configuration. From
    scratch, a classifier is built for the images of `input_shape`, and a language model without
    special tokens: each of the `num_classes` tokens is data.

    Raises:
        ModuleNotFoundError: transformers is not installed.
        ValueError: nothing of that name, a network of another kind, a pretrained language model,
            arguments that the configuration does not have or refuses.
    """
    source = _Source(require("transformers", "hf", f"architecture {'hf/' + name!r}"), name, pretrained)
    default = source.config({})
    valid = {*default.to_dict(), *default.attribute_map, "attn_implementation"}
    for argument in arguments:
        if argument not in valid:
            raise unknown(f"attribute of the configuration of {str(source)!r}", argument, valid)
    if type(default) in source.library.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        auto = source.library.AutoModelForImageClassification
        fitted = _for_images(default, None if pretrained else input_shape, num_classes)
        config = source.config({**fitted, **arguments})
    elif type(default) in source.library.MODEL_FOR_CAUSAL_LM_MAPPING:
        if pretrained:
            raise ValueError(
                f"{str(source)!r} is a language model, whose vocabulary is not that of a data set of this package: "
                "load it with transformers, and put it under a rule with biotorch.convert"
            )
        auto = source.library.AutoModelForCausalLM
        config = source.config({**_for_tokens(default, num_classes), **arguments})
        _check_length(source, config, input_shape)
    else:
        kind = type(default).__name__
        raise ValueError(f"{str(source)!r} ({kind}) is neither an image classifier nor a causal language model")
    dtype = torch.get_default_dtype()  # a published configuration may ask for half precision
    if pretrained:
        network = auto.from_pretrained(name, config=config, dtype=dtype, ignore_mismatched_sizes=True)
    else:
        network = auto.from_config(config, dtype=dtype)
    return HuggingFace(network.train())


class _Source(NamedTuple):
    """Where a configuration comes from."""

    library: ModuleType
    name: str
    pretrained: bool

    def __str__(self) -> str:
        return f"hf/{self.name}"

    def config(self, arguments: Mapping[str, Any]) -> Any:
        """The configuration of that name with these attributes."""
        from huggingface_hub.errors import StrictDataclassError

        types = self.library.CONFIG_MAPPING
        by_type = self.name in types and not self.pretrained
        if not by_type and "/" not in self.name and not Path(self.name).is_dir():
            if self.name in types:
                raise ValueError(f"{str(self)!r} is a model type and has no weights: name a hub id or a local folder")
            raise ValueError(f"{unknown('model type of transformers', self.name, types)} A hub id is <owner>/<name>.")
        try:
            if not by_type:
                return self.library.AutoConfig.from_pretrained(self.name, **arguments)
            return self.library.AutoConfig.for_model(self.name, **arguments)
        except StrictDataclassError as error:
            raise ValueError(f"{str(self)!r} cannot be built with these arguments: {error}") from error
        except OSError as error:
            if disk_is_full(error):
                raise
            raise ValueError(f"{str(self)!r} cannot be read as a hub id or a local folder: {error}") from error


def _for_images(default: Any, input_shape: Sequence[int] | None, num_classes: int | None) -> dict[str, Any]:
    fitted: dict[str, Any] = {} if num_classes is None else {"num_labels": num_classes}
    if input_shape is not None and len(input_shape) == 3:
        channels, height, width = input_shape
        images = {"num_channels": channels, "image_size": height if height == width else [height, width]}
        fitted |= {key: value for key, value in images.items() if hasattr(default, key)}
    return fitted


def _for_tokens(default: Any, num_classes: int | None) -> dict[str, Any]:
    fitted: dict[str, Any] = {} if num_classes is None else {"vocab_size": num_classes}
    # A padding token would have no embedding; BERT and its family look ahead unless they are decoders.
    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, "is_decoder": True, "use_cache": False}
    return fitted | {key: value for key, value in special.items() if hasattr(default, key)}


def _check_length(source: _Source, config: Any, input_shape: Sequence[int] | None) -> None:
    longest = getattr(config, "max_position_embeddings", None)
    if input_shape is not None and longest is not None and input_shape[0] > longest:
        raise ValueError(
            f"{str(source)!r} takes at most {longest} tokens, the sequences have {input_shape[0]}: "
            f"give max_position_embeddings={input_shape[0]}"
        )
