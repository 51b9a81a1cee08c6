"""Small convolutional networks: the LeNets of the paper, and ResNets for CIFAR."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F


class LeNetMNIST(nn.Module):
    """LeNet for MNIST: 5x5 convolutions of 6, 16 and 120 channels, linear 84, linear `num_classes`.

    Input (N, 1, 32, 32), output (N, num_classes).

    Examples:
        >>> biotorch.models.LeNetMNIST()(torch.randn(2, 1, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, 5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(6, 16, 5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(16, 120, 5),
            nn.ReLU(),
        )
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))  # type: ignore[no-any-return]


class LeNetCIFAR(nn.Module):
    """LeNet for CIFAR: 3x3 convolutions of 32, 64 and 128 channels, mean over space, linear 256 and `num_classes`.

    Input (N, 3, 32, 32), output (N, num_classes).

    Examples:
        >>> biotorch.models.LeNetCIFAR()(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 32, 3),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(64, 128, 3),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
        )
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))  # type: ignore[no-any-return]


def le_net_mnist(num_classes: int = 10) -> nn.Module:
    """The paper's LeNet for MNIST and Fashion-MNIST: input (N, 1, 32, 32)."""
    return LeNetMNIST(num_classes)


def le_net_cifar(num_classes: int = 10) -> nn.Module:
    """The paper's LeNet for CIFAR-10: input (N, 3, 32, 32)."""
    return LeNetCIFAR(num_classes)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (N, C_in, H, W) -> (N, C_out, H / stride, W / stride)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.extra_channels = stride, channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))

    def shortcut(self, x: Tensor) -> Tensor:
        """Parameter-free shortcut (option A): every `stride`-th pixel; new channels are zero, half before the old."""
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.extra_channels:
            before = self.extra_channels // 2
            x = F.pad(x, (0, 0, 0, 0, before, self.extra_channels - before))
        return x


class CIFARResNet(nn.Module):
    """ResNet of 6 n + 2 layers for CIFAR. Input (N, 3, 32, 32), output (N, num_classes).

    Examples:
        >>> biotorch.models.CIFARResNet(depth=8, num_classes=5)(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 5])
    """

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        super().__init__()
        if (depth - 2) % 6:
            raise ValueError(f"depth must be 6 n + 2, got {depth}")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, stride=1)
        self.layer2 = self._stage(16, 32, blocks, stride=2)
        self.layer3 = self._stage(32, 64, blocks, stride=2)
        self.fc = nn.Linear(64, num_classes)

    @staticmethod
    def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
        rest = [BasicBlock(channels, channels, 1) for _ in range(blocks - 1)]
        return nn.Sequential(BasicBlock(in_channels, channels, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def _constructor(depth: int) -> Callable[..., nn.Module]:
    def resnet(num_classes: int = 10) -> nn.Module:
        return CIFARResNet(depth, num_classes)

    resnet.__doc__ = f"ResNet-{depth} for 32x32 images: input (N, 3, 32, 32), output (N, num_classes)."
    return resnet


#: Constructors by name: `resnet20` to `resnet1202`. torchvision's `resnet18` and others are for ImageNet.
RESNETS = {f"resnet{depth}": _constructor(depth) for depth in (20, 32, 44, 56, 110, 1202)}
