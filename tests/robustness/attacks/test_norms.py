"""Rounding to 8 bits inside the ball."""

from __future__ import annotations

import pytest
import torch

from biotorch.robustness import as_8bit
from biotorch.robustness.attacks.norms import project, size


@pytest.mark.parametrize(
    ("norm", "epsilon"), [("linf", 8 / 255), ("linf", 0.03), ("l2", 0.5), ("l2", 0.004), ("l1", 3.0)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounded_examples_stay_in_the_ball(norm, epsilon, dtype):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(60, 200, (20, 3, 6, 6), generator=generator).to(dtype) / 255
    noise = torch.randn(images.shape, generator=generator, dtype=dtype)
    adversarial = project(
        images + noise * torch.linspace(0, 0.3, 20, dtype=dtype).view(-1, 1, 1, 1), images, epsilon, norm
    )
    rounded = as_8bit(adversarial, images, epsilon, norm)
    assert rounded.dtype == torch.uint8
    found = rounded.to(dtype) / 255
    assert (size(found - images, norm) <= epsilon + 1e-6).all()
    assert ((found - adversarial).abs() < 1 / 255 + 1e-6).all()  # one of the two levels beside the value
    plain = (255 * adversarial).round()
    inside = size(plain / 255 - images, norm) <= epsilon
    assert torch.equal(rounded[inside].to(dtype), plain[inside])
    if norm == "l2" and epsilon > 0.1:  # no more values go towards the image than must
        assert 0 < (rounded.to(dtype) != plain).double().mean() < 0.3


def test_only_8_bit_images_have_such_examples():
    with pytest.raises(ValueError, match="multiples of 1/255"):
        as_8bit(torch.full((1, 4), 0.5), torch.full((1, 4), 0.5), 0.1)
    with pytest.raises(ValueError, match="adversarial: \\(1, 4\\)"):
        as_8bit(torch.zeros(1, 5), torch.zeros(1, 4), 0.1)


@pytest.mark.parametrize(
    ("epsilon", "norm", "message"),
    [
        (8, "linf", "write 8/255"),
        (-0.1, "l2", "epsilon: a number"),
        (0.1, "l3", "one of linf, l2, l1"),
        (0.1, "linf", "is 0.2 from its image"),
        (0.3, "l2", "is 0.4 from its image"),
    ],
)
def test_bad_balls_are_refused(epsilon, norm, message):
    with pytest.raises(ValueError, match=message):
        as_8bit(torch.full((1, 4), 0.2), torch.zeros(1, 4), epsilon, norm)


def test_arrays_are_rounded_too():
    assert as_8bit(torch.full((1, 4), 0.2).numpy(), torch.zeros(1, 4).numpy(), 0.2).tolist() == [[51] * 4]
