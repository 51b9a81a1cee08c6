"""What the conformance tests share: the registered rules, one network with every common layer, its gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import biotorch

RULES = biotorch.rules.available()
DIRECT = [name for name in RULES if biotorch.rules.get(name).direct]
LAYERWISE = [name for name in RULES if not biotorch.rules.get(name).direct]


class Net(nn.Module):
    """Images (N, 2, 8, 8) -> 3 logits, as features and a head that users may call separately."""

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
        return self.head(self.features(x))


LAYER_NAMES = ["features.0", "features.2", "features.5", "head"]


def net(rule: str, inplace: bool = False, **options) -> Net:
    """The same W on every call, under `rule`."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = Net(inplace)
    return biotorch.convert(model, rule, seed=3, **options)


def images(n: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(n, 2, 8, 8, generator=torch.Generator().manual_seed(seed))


def loss_of(output: Tensor) -> Tensor:
    """A sum over examples, not a mean: gradients of two batches add up."""
    weights = torch.linspace(-1, 1, output.shape[-1], dtype=output.dtype)
    return (output.square() * 0.5 + output * weights).sum()


def collect(model: nn.Module) -> dict[str, Tensor]:
    """The gradients by parameter name, and clears them."""
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Of one ordinary step of every parameter: the yardstick of most tests."""
    model.zero_grad()
    loss_of(model(x)).backward()
    return collect(model)


def assert_all_learn(found: dict[str, Tensor], model: nn.Module) -> None:
    """Every trainable parameter has a gradient, and it is not zero."""
    assert set(found) == {name for name, p in model.named_parameters() if p.requires_grad}
    for name, gradient in found.items():
        assert gradient.isfinite().all(), name
        assert gradient.abs().sum() > 0, name


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], **tolerance) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, **tolerance, msg=lambda m, n=name: f"{n}: {m}")


def assert_identical(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert_close(found, expected, rtol=0, atol=0)
