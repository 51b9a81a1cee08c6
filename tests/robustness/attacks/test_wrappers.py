"""Preprocessing without a gradient of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from deceiving_networks import mlp, train
from torch import nn

from biotorch.robustness import PGD, Normalised, straight_through


def coarse(images):
    return (images * 3).round() / 3


def test_forward_is_the_preprocessing_and_backward_the_identity():
    images = torch.rand(4, 1, 8, 8, requires_grad=True)
    weights = torch.randn(4, 1, 8, 8)
    processed = straight_through(coarse)(images)
    assert torch.equal(processed, coarse(images))
    (processed * weights).sum().backward()
    assert torch.equal(images.grad, weights)


def test_backward_may_be_that_of_an_approximation():
    images = torch.rand(4, 8, dtype=torch.float64, requires_grad=True)
    processed = straight_through(coarse, backward=torch.sin)(images)
    assert torch.equal(processed, coarse(images))
    processed.sum().backward()
    assert torch.allclose(images.grad, images.detach().cos())


def test_an_attack_gets_through(digits):
    net = train(mlp(), digits[0])
    images, labels = digits[1]
    defended, opened = (nn.Sequential(each, net) for each in (nn.Identity(), straight_through(coarse)))
    hidden = nn.Sequential(straight_through(coarse, backward=lambda images: images.detach() + 0 * images), net)
    left = [float(PGD(each, 0.3).run(images, labels).robust.double().mean()) for each in (defended, opened, hidden)]
    assert left[0] < 0.1
    assert left[1] < left[2] - 0.2  # without a gradient the attack gets nowhere


@pytest.mark.parametrize(
    "preprocess", [lambda images: images.mul_(3).round_().div_(3), lambda images: coarse(images.numpy())]
)
def test_preprocessing_may_write_in_place_and_return_arrays(preprocess):
    images = torch.rand(4, 1, 8, 8)
    before = images.clone()
    assert torch.equal(straight_through(preprocess)(images), coarse(images))
    assert torch.equal(images, before)


@pytest.mark.parametrize("kind", [float, np.array, torch.tensor, lambda value: [value]])
def test_normalised_takes_numbers_and_arrays(kind):
    images = torch.rand(2, 1, 2, 2)
    found = Normalised(nn.Identity(), kind(0.5), kind(0.25))(images)
    assert torch.equal(found, (images - 0.5) / 0.25)
    with pytest.raises(ValueError, match="std above 0"):
        Normalised(nn.Identity(), kind(0.5), kind(0.0))


def test_mistakes_are_told():
    with pytest.raises(ValueError, match=r"preprocess: images of shape \(2, 1, 8, 8\) must keep it"):
        straight_through(lambda images: images[..., 1:])(torch.rand(2, 1, 8, 8))
    with pytest.raises(ValueError, match="backward: "):
        straight_through(coarse, backward=torch.sum)(torch.rand(2, 3))
    with pytest.raises(TypeError, match="preprocess: a function"):
        straight_through(None)
