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

#: Definition of a builder that torchvision registers.
_REGISTERED = re.compile(r"^@register_model\(\)\n(?:@.*\n)*def (\w+)", re.MULTILINE)
#: Arguments that the builders of MobileNetV3 take in addition to the arguments of its class.
_MOBILENET_V3 = ("width_mult", "reduced_tail", "dilated")


@functools.cache
def torchvision_names() -> tuple[str, ...]:
    """Names of torchvision's classification networks, read from its source, because importing it takes a second."""
    spec = importlib.util.find_spec("torchvision")
    files = Path(spec.origin).parent.glob("models/*.py") if spec is not None and spec.origin is not None else ()
    sources = (path.read_text(encoding="utf-8") for path in files)
    return tuple(sorted(name for source in sources for name in _REGISTERED.findall(source)))


def argument_names(name: str) -> list[str]:
    """Names of the keyword arguments of a network of torchvision, without the number of classes."""
    from torchvision import models

    network = inspect.signature(models.get_model_builder(name)).return_annotation
    parameters = inspect.signature(network).parameters.values()
    own = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name != "num_classes"]
    return own + list(_MOBILENET_V3) if name.startswith("mobilenet_v3") else own


def implied_by_weights(name: str) -> dict[str, Any]:
    """Arguments that torchvision sets with the published weights of a network, which are not in its state_dict.

    Examples:
        >>> biotorch.models.implied_by_weights("googlenet"), biotorch.models.implied_by_weights("resnet18")
        ({'transform_input': True}, {})
    """
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
    """Build a network of torchvision, whose outputs are the logits in training mode, too.

    Auxiliary heads (GoogLeNet, Inception v3), with which the outputs are a tuple, exist only with `aux_logits=True`.
    With published weights, the heads are new and random, unless `num_classes` is the published number. A vision
    transformer from scratch is built for the image size in `input_shape`.

    Raises:
        ValueError: the network, or its published weights, do not take these arguments.
    """
    known = argument_names(name)
    given = dict(arguments)
    auxiliary = given.pop("aux_logits", False)
    if auxiliary:
        given["aux_logits"] = True  # with published weights, which have these heads, torchvision refuses False
    scratch = (
        {"init_weights": True, **given} if "aux_logits" in known else given
    )  # the default of these networks, without its warning
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
    except (TypeError, AssertionError) as error:  # a refused value, or an argument that the builder sets itself
        raise ValueError(f"{name!r} cannot be built with these arguments: {error}") from error
    return model


def _take_heads(model: nn.Module, fresh: nn.Module, num_classes: int | None) -> None:
    """Replace each module of `model` that has other numbers of rows (the classes) in `fresh` by the one of `fresh`.

    Other dimensions are not compared, because position embeddings depend on the image size of the published weights.
    """
    replacements = dict(fresh.named_modules())
    for name, module in list(model.named_modules()):
        if _rows(module) != _rows(replacements[name]):
            model.set_submodule(name, replacements[name])
    if hasattr(model, "num_classes"):
        setattr(model, "num_classes", num_classes)  # noqa: B010 - an int, but the type of module attributes is Tensor


def _rows(module: nn.Module) -> dict[str, Any]:
    """First dimension of each parameter that belongs to the module itself."""
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
    """Build a network by `timm.create_model`.

    From scratch, it is built for the channels of the images and, if the network depends on it, for their size.

    Raises:
        ModuleNotFoundError: timm is not installed.
        ValueError: the name is unknown, or the network does not take these arguments.
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
            return create({"in_chans": sized["in_chans"]})  # this network takes images of any size
    except (TypeError, AssertionError) as error:
        raise ValueError(f"'timm/{name}' cannot be built with these arguments: {error}") from error


class HuggingFace(nn.Module):
    """A network of transformers that returns only its logits. The wrapped network is `network`.

    Images (N, C, H, W) -> (N, num_classes), or int64 tokens (N, T) -> (N, T, vocabulary).

    Examples:
        >>> model = biotorch.models.build("hf/gpt2", num_classes=9, n_layer=1, n_head=2, n_embd=8)
        >>> type(model).__name__, model(torch.randint(9, (2, 5))).shape
        ('HuggingFace', torch.Size([2, 5, 9]))
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
    """Build an image classifier or a causal language model by model type (`vit`, `gpt2`), hub id or folder.

    A model type stands for its default configuration. `arguments` are attributes of the configuration. From scratch, a
    classifier is built for images of `input_shape`. A language model is built without special tokens, because all
    `num_classes` tokens are data.

    Raises:
        ModuleNotFoundError: transformers is not installed.
        ValueError: there is no network of that name, it is of another kind, it is a pretrained language model, or the
            configuration does not have an argument or refuses its value.
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
                f"{str(source)!r} is a pretrained language model, whose vocabulary does not fit the data sets of this "
                "package: load it with transformers, and put it under a rule with biotorch.convert"
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
    """Source of a configuration of transformers: a model type, a hub id or a folder."""

    library: ModuleType
    name: str
    pretrained: bool

    def __str__(self) -> str:
        return f"hf/{self.name}"

    def config(self, arguments: Mapping[str, Any]) -> Any:
        """Load the configuration and set `arguments` as its attributes."""
        from huggingface_hub.errors import StrictDataclassError

        types = self.library.CONFIG_MAPPING
        by_type = self.name in types and not self.pretrained
        if not by_type and "/" not in self.name and not Path(self.name).is_dir():
            if self.name in types:
                raise ValueError(
                    f"{str(self)!r} is a model type, which has no weights: give a hub id or a local folder"
                )
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
    # A padding token would have no embedding. BERT and its relatives see later tokens unless they are decoders.
    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, "is_decoder": True, "use_cache": False}
    return fitted | {key: value for key, value in special.items() if hasattr(default, key)}


def _check_length(source: _Source, config: Any, input_shape: Sequence[int] | None) -> None:
    longest = getattr(config, "max_position_embeddings", None)
    if input_shape is not None and longest is not None and input_shape[0] > longest:
        raise ValueError(
            f"{str(source)!r} takes at most {longest} tokens, but the sequences have {input_shape[0]}: "
            f"set max_position_embeddings={input_shape[0]}"
        )
