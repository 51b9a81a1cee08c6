"""Architectures by name. `biotorch.models.<rule>` has the constructors of all of them under that rule."""

from typing import Any

from biotorch.models.char_transformer import CharTransformer
from biotorch.models.convolutional import CIFARResNet, LeNetCIFAR, LeNetMNIST
from biotorch.models.mlp import MLP
from biotorch.models.recurrent import RecurrentNetwork
from biotorch.models.registry import OWN, available, build, check_name, sketch
from biotorch.models.zoos import HuggingFace, implied_by_weights
from biotorch.rules.paths import per_rule

__all__ = [
    "MLP",
    "OWN",
    "CIFARResNet",
    "CharTransformer",
    "HuggingFace",
    "LeNetCIFAR",
    "LeNetMNIST",
    "RecurrentNetwork",
    "available",
    "build",
    "check_name",
    "implied_by_weights",
    "sketch",
]


def _under_rule(rule: str) -> dict[str, Any]:
    from biotorch.models.constructors import under_rule

    return under_rule(rule)


__getattr__, __dir__ = per_rule("biotorch.models", _under_rule)
