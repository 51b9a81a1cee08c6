"""Architectures. `biotorch.models.<method>` holds every one of them under the rule of that method."""

from biotorch.models.cifar_resnet import CIFARResNet
from biotorch.models.lenet import LeNetCIFAR, LeNetMNIST
from biotorch.models.registry import available, build

__all__ = ["CIFARResNet", "LeNetCIFAR", "LeNetMNIST", "available", "build"]
