"""Networks of Hugging Face transformers, as `hf/<model type, hub id or local folder>`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from biotorch.extras import require
from biotorch.names import unknown
from biotorch.writing import disk_is_full


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


def build(
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
        from huggingface_hub.errors import StrictDataclassError  # noqa: PLC0415 - comes with transformers

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
