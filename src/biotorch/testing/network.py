"""The small network that the checks train, its images, and comparisons of gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from biotorch.conversion.convert import convert


class Net(nn.Module):
    """Images (N, 2, 8, 8) -> 3 logits, as features and a head that users may call separately.

    Examples:
        >>> biotorch.testing.Net()(biotorch.testing.images(2)).shape
        torch.Size([2, 3])
    """

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.ReLU(inplace),
            nn.Conv2d(4, 6, 3, stride=2, groups=2),
            nn.ReLU(inplace),
            nn.Flatten(),
            nn.Linear(54, 10),
            nn.ReLU(inplace),
        )
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))  # type: ignore[no-any-return]


LAYER_NAMES = ["features.0", "features.2", "features.5", "head"]


def net(rule: str, inplace: bool = False, **options: Any) -> Net:
    """Network `Net` under `rule`, with the same W on every call.

    Examples:
        >>> biotorch.testing.net("fa").head.rule.name
        'fa'
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = Net(inplace)
    return convert(model, rule, seed=3, **options)


def images(n: int = 5, seed: int = 0) -> Tensor:
    """Noise images (n, 2, 8, 8), determined by the seed.

    Examples:
        >>> biotorch.testing.images(2, seed=1).shape
        torch.Size([2, 2, 8, 8])
    """
    return torch.randn(n, 2, 8, 8, generator=torch.Generator().manual_seed(seed))


def loss_of(output: Tensor) -> Tensor:
    """Loss that is a sum over examples and not a mean, so that gradients of two batches add up.

    Examples:
        >>> biotorch.testing.loss_of(torch.tensor([[1.0, 2.0]]))
        tensor(3.5000)
    """
    weights = torch.linspace(-1, 1, output.shape[-1], dtype=output.dtype)
    return (output.square() * 0.5 + output * weights).sum()


def collect(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the gradients by parameter name, and clear them.

    Examples:
        >>> model = biotorch.testing.net("fa")
        >>> biotorch.testing.loss_of(model(biotorch.testing.images())).backward()
        >>> len(biotorch.testing.collect(model)), model.head.weight.grad
        (8, None)
    """
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Gradients of all parameters from one ordinary forward and backward pass.

    Examples:
        >>> sorted(biotorch.testing.gradients(biotorch.testing.net("fa"), biotorch.testing.images()))[:2]
        ['features.0.bias', 'features.0.weight']
    """
    model.zero_grad()
    loss_of(model(x)).backward()  # type: ignore[no-untyped-call]
    return collect(model)


def assert_all_learn(found: dict[str, Tensor], model: nn.Module) -> None:
    """Every trainable parameter has a gradient, and it is not zero.

    Examples:
        >>> model = biotorch.testing.net("fa")
        >>> biotorch.testing.assert_all_learn(biotorch.testing.gradients(model, biotorch.testing.images()), model)
    """
    assert set(found) == {name for name, p in model.named_parameters() if p.requires_grad}, "gradients are missing"
    for name, gradient in found.items():
        assert gradient.isfinite().all(), f"{name}: not finite"
        assert gradient.abs().sum() > 0, f"{name}: its gradient is zero"


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: Any) -> None:
    """Raise AssertionError unless names are equal and values agree within `torch.testing.assert_close`'s tolerance.

    Examples:
        >>> biotorch.testing.assert_close({"w": torch.ones(2)}, {"w": torch.ones(2) + 1e-7}, rtol=0, atol=1e-5)
    """
    assert found.keys() == expected.keys(), f"{sorted(found.keys() ^ expected.keys())} are missing on one side"
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, **tolerance, msg=lambda m, n=name: f"{n}: {m}")  # type: ignore[misc]


def assert_identical(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise AssertionError unless names and bits are equal.

    Examples:
        >>> biotorch.testing.assert_identical({"w": torch.ones(2)}, {"w": torch.ones(2)})
    """
    assert_close(found, expected, rtol=0, atol=0)
