"""Architectures. `biotorch.models.<method>` holds every one of them under the rule of that method."""

from biotorch.models import backpropagation, brsf, dfa, fa, frsf, usf
from biotorch.models.char_transformer import CharTransformer
from biotorch.models.cifar_resnet import CIFARResNet
from biotorch.models.huggingface import HuggingFace
from biotorch.models.lenet import LeNetCIFAR, LeNetMNIST
from biotorch.models.mlp import MLP
from biotorch.models.registry import available, build, check_name
from biotorch.models.vision import implied_by_weights

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
