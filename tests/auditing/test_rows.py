"""`hears_own`: whether each row of a direct layer hears the error of its own example."""

from __future__ import annotations

import pytest
import torch
from networks import images
from torch import Tensor, nn

import biotorch
from biotorch.auditing.rows import hears_own


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(16, 4)

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        return self.out(torch.cat(self.b(self.a(torch.cat([u, v])).tanh()).tanh().chunk(2), 1))


@pytest.mark.parametrize(
    ("options", "hears"),
    [
        ({"rule": "dfa"}, True),
        ({"rule": "sdfa"}, True),
        ({"rule": "drtp"}, None),  # it sends targets, and no error
        ({"rule": "dfa", "rows": "tiled"}, True),
        ({"rule": "dfa", "rows": "interleaved"}, False),
        ({"rule": "dfa", "rows": lambda u, v: torch.arange(16) % 8}, True),
        ({"rule": "dfa", "rows": lambda u, v: torch.arange(16).flip(0) % 8}, False),
    ],
)
def test_rows_that_hear_another_example_are_found(options, hears):
    model, inputs = biotorch.convert(Siamese(), **options), tuple(torch.randn(2, 8, 6))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    found = hears_own(model, inputs)
    assert {name: found[name] for name in ("a", "b")} == {"a": hears, "b": hears}
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_layers_with_positions_windows_and_batch_statistics_hear_their_own_example():
    model = biotorch.convert(biotorch.models.build("resnet20"), "dfa")
    found = hears_own(model, images(3))
    assert found
    assert all(found.values())
    model = biotorch.convert(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), {"2": "dfa", "*": "fa"})
    assert hears_own(model, torch.randn(3, 4)) == {"2": True}
