"""Architectures. `biotorch.models.<method>` holds every one of them under the rule of that method."""

from biotorch.models import backpropagation, brsf, dfa, fa, frsf, usf
from biotorch.models.char_transformer import CharTransformer
from biotorch.models.convolutional import CIFARResNet, LeNetCIFAR, LeNetMNIST
from biotorch.models.mlp import MLP
from biotorch.models.registry import available, build, check_name
from biotorch.models.zoos import HuggingFace, implied_by_weights

__all__ = [
    "MLP",
    "CIFARResNet",
    "CharTransformer",
    "HuggingFace",
    "LeNetCIFAR",
    "LeNetMNIST",
    "available",
    "backpropagation",
    "brsf",
    "build",
    "check_name",
    "dfa",
    "fa",
    "frsf",
    "implied_by_weights",
    "usf",
]
