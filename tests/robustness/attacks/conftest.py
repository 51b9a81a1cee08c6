"""A trained network for the attacks that the library makes, and its ensemble in few steps."""

from __future__ import annotations

import pyautoattack
import pytest
import torch
from library_attacks import conv
from torch import nn


@pytest.fixture(scope="module")
def trained():
    """A network that tells apart where an image is bright, with images and labels."""
    generator = torch.Generator().manual_seed(1)
    patterns = torch.rand(4, 1, 8, 8, generator=generator)

    def drawn(n):
        labels = torch.randint(4, (n,), generator=generator)
        return (0.4 * patterns[labels] + 0.6 * torch.rand(n, 1, 8, 8, generator=generator)).clamp(0, 1), labels

    model = conv()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        images, labels = drawn(64)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    images, labels = drawn(150)
    assert (model.eval()(images).argmax(1) == labels).double().mean() > 0.9
    return model, images, labels


@pytest.fixture
def short(monkeypatch):
    """The standard ensemble in fewer steps: 100 of each attack and 5,000 queries take too long here."""

    def made(*arguments, **options):
        ensemble = library(*arguments, **options)
        for each in (ensemble.apgd, ensemble.apgd_targeted, ensemble.fab):
            each.n_iter = 5
        ensemble.apgd.eot_iter = min(ensemble.apgd.eot_iter, 3)
        ensemble.square.n_queries = 10
        return ensemble

    library = pyautoattack.AutoAttack
    monkeypatch.setattr(pyautoattack, "AutoAttack", made)
