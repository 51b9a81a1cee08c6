"""Saved examples break what the attack broke, though they are rounded."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from biotorch.experiment.examples import _whole, save_examples
from biotorch.robustness import CW, FAB, PGD, as_8bit, study


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (PGD, {"steps": 100, "random_start": False}),
        (CW, {"steps": 40, "searches": 4}),
        (FAB, {"norm": "l2", "steps": 10}),
    ],
)
def test_rounding_costs_nothing(kind, options):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(30, 226, (40, 1, 6, 6), generator=generator) / 255
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(2, 36, generator=generator))
        model[1].bias.copy_(-(images.flatten(1) @ model[1].weight.T).mean(0))
        labels = model(images).argmax(1)
    attack = kind(model, epsilon=0.2 if kind is PGD else 0.8, **options)
    found = attack(images, labels) if kind is PGD else attack.smallest(images, labels).adversarial
    broken = model(found).argmax(1) != labels
    plain, chosen = (
        model(each / 255).argmax(1) != labels
        for each in (as_8bit(found, images, attack.epsilon, attack.norm), _whole(attack, model, images, labels, found))
    )
    assert broken.all()
    assert chosen.all()
    assert not plain.all()


class Rounded(nn.Module):
    """A network behind rounding, which leaves no gradient."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network((16 * images.detach()).round() / 16)


def test_examples_are_transferred_from_the_part_that_they_came_from(tmp_path):
    """The strongest attack of the study is a transfer from the network inside; there is no twin."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(30, 226, (120, 36), generator=generator) / 255
    inside = nn.Linear(36, 2)
    with torch.no_grad():
        inside.weight.copy_(torch.randn(2, 36, generator=generator))
        inside.bias.copy_(-(images @ inside.weight.T).mean(0))
        labels = inside(images).argmax(1)
    model = Rounded(inside)
    found = study(model, (images, labels), ["pgd"], [0.1])
    strongest = min(found.measurements, key=lambda each: each.robust_accuracy)
    assert strongest.label == "transfer from=part network"
    [saved] = save_examples(tmp_path, model, None, images, labels, found, "")
    assert saved.unrounded_accuracy == pytest.approx(strongest.robust_accuracy)
    assert saved.examples.attack == strongest.label
