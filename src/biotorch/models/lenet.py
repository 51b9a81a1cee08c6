"""The two LeNets of the paper (table 5).

They pool before the ReLU, not after it as printed: the maximum and ReLU commute, outputs and gradients
are the same to the bit, and ReLU has a quarter of the work.
"""

from __future__ import annotations

from torch import Tensor, nn


class LeNetMNIST(nn.Module):
    """Convolutions 5x5 of 6, 16 and 120 channels, linear 84, linear `num_classes`.

    Input (N, 1, 32, 32), output (N, num_classes).
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
    """Convolutions 3x3 of 32, 64 and 128 channels, mean over space, linear 256, linear `num_classes`.

    Input (N, 3, 32, 32), output (N, num_classes).
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
