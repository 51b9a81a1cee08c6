"""Corruptions: every kind on images of any size, against Pillow and formulas; mean corruption error; the store."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from biotorch.robustness import Corruptions, corrupt, corruptions
from biotorch.robustness.corrupting import KINDS


def pictures(n=12, channels=3, height=32, width=32, seed=0):
    """Random images in [0, 1]: clouds with a texture."""
    generator = torch.Generator().manual_seed(seed)
    coarse, fine = (torch.rand(n, channels, *size, generator=generator) for size in ((5, 5), (height, width)))
    return (nn.functional.interpolate(coarse, (height, width), mode="bicubic") + 0.3 * fine - 0.15).clamp(0, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("channels", "height", "width"), [(3, 32, 32), (1, 28, 28), (1, 8, 8), (3, 40, 24)])
def test_every_kind_changes_images_of_any_size_and_keeps_them_images(kind, channels, height, width):
    images = pictures(6, channels, height, width).double()
    before = torch.random.get_rng_state()
    for severity in (1, 5):
        found = corrupt(images, kind, severity)
        assert found.shape == images.shape
        assert found.dtype == images.dtype
        assert ((255 * found).round() - 255 * found).abs().max() < 1e-3  # 8-bit values
        assert 0 <= found.min() <= found.max() <= 1
        assert torch.equal(found, corrupt(images, kind, severity))
    assert ((found - images).abs().amax((1, 2, 3)) > 0.03).sum() >= 5  # impulses may miss a small image
    random = kind not in ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")
    assert random != torch.equal(corrupt(images, kind, 3), corrupt(images, kind, 3, seed=1))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("kind", ["gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "motion_blur",
                                  "zoom_blur", "snow", "frost", "fog", "brightness", "contrast"])  # fmt: skip
def test_images_change_more_at_a_higher_severity(kind):
    images = 0.2 + 0.6 * pictures(40)
    change = [float((corrupt(images, kind, severity) - images).abs().mean()) for severity in (1, 5)]
    assert change[1] > 1.3 * change[0]


def test_noise_has_the_spread_of_cifar_10_c():
    grey = torch.full((20, 3, 32, 32), 0.5)
    for severity, deviation in enumerate((0.04, 0.06, 0.08, 0.09, 0.10), 1):
        assert corrupt(grey, "gaussian_noise", severity).std() == pytest.approx(deviation, rel=0.03)
    for severity, photons in enumerate((500, 250, 100, 75, 50), 1):
        assert corrupt(grey, "shot_noise", severity).std() == pytest.approx((0.5 / photons) ** 0.5, rel=0.03)
    for severity, share in enumerate((0.01, 0.02, 0.03, 0.05, 0.07), 1):
        found = corrupt(grey, "impulse_noise", severity)
        assert (found == 0).float().mean() == pytest.approx(share / 2, rel=0.1)
        assert (found == 1).float().mean() == pytest.approx(share / 2, rel=0.1)


def test_pixels_and_files_are_those_of_pillow():
    images = (255 * pictures(4)).round() / 255
    for severity, (share, quality) in enumerate(
        zip((0.95, 0.9, 0.85, 0.75, 0.65), (80, 65, 58, 50, 40), strict=True), 1
    ):
        for image, coarse, packed in zip(
            images, corrupt(images, "pixelate", severity), corrupt(images, "jpeg_compression", severity), strict=True
        ):
            whole = Image.fromarray((255 * image).round().byte().permute(1, 2, 0).numpy())
            small = whole.resize((int(32 * share),) * 2, Image.Resampling.BOX)
            wanted = np.array(small.resize((32, 32), Image.Resampling.BOX))
            assert np.abs(255 * coarse.permute(1, 2, 0).numpy() - wanted).max() <= 1.01  # Pillow rounds on the way
            whole.save(file := io.BytesIO(), "JPEG", quality=quality)
            assert np.abs(255 * packed.permute(1, 2, 0).numpy() - np.array(Image.open(file))).mean() < 1


def test_formulas_of_single_kinds():
    images = pictures(3)
    dot = torch.zeros(1, 1, 33, 33)
    dot[..., 16, 16] = 1
    spread = corrupt(dot, "defocus_blur", 5)[0, 0]  # the nine pixels within 1.5 of the centre
    assert spread.nonzero().tolist() == [[y, x] for y in (15, 16, 17) for x in (15, 16, 17)]
    assert spread[15:18, 15:18].std() < 0.01
    mean = images.mean((2, 3), keepdim=True)
    assert torch.allclose(corrupt(images, "contrast", 4), mean + 0.3 * (images - mean), atol=0.003)
    brighter = corrupt(images, "brightness", 2)
    assert torch.allclose(brighter.amax(1), (images.amax(1) + 0.1).clamp(max=1), atol=0.003)
    assert torch.allclose(
        brighter / brighter.amax(1, True), images / images.amax(1, True), atol=0.03
    )  # hue, saturation
    assert corrupt(torch.zeros(1, 3, 32, 32), "brightness", 1).unique().tolist() == pytest.approx([13 / 255])
    foggy = corrupt(torch.ones(2, 1, 32, 32), "fog", 5)  # (1 + 1.5 plasma) / 2.5, where the plasma covers [0, 1]
    assert foggy.min() == pytest.approx(1 / 2.5, abs=0.003)
    assert foggy.max() == 1
    glass, middle = corrupt(dot, "glass_blur", 1, seed=4)[0, 0], (slice(15, 18),) * 2
    assert glass.sum() == glass[middle].sum()  # every pixel comes from at most one pixel away


def test_mistakes_are_named():
    images, labels = torch.rand(3, 1, 8, 8), torch.zeros(3, dtype=torch.int64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    for arguments, message in (
        ((images, "fogg"), "Did you mean 'fog'"),
        ((images, "fog", 6), "severity: a whole number from 1 to 5"),
        ((images.expand(-1, 2, -1, -1), "fog"), "C 1 or 3"),
        ((2 * images + 1, "fog"), "values from 0 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            corrupt(*arguments)
    with pytest.raises(ValueError, match="Did you mean 'snow'"):
        corruptions(model, (images, labels), ["snoww"])
    with pytest.raises(ValueError, match="at least one"):
        corruptions(model, (images, labels), [])
    with pytest.raises(ValueError, match="labels: class 2 is beyond the network's 2 outputs"):
        corruptions(model, (images, labels + 2))


# Accuracy ------------------------------------------------------------------------------------------------


class Bright(nn.Module):
    """Says 1 where the mean of an image is above a threshold."""

    def __init__(self, threshold):
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(threshold))

    def forward(self, images):
        margin = 20 * (images.mean((1, 2, 3)) - self.threshold)
        return torch.stack([-margin, margin], 1)


def test_figures_are_those_of_the_corrupted_images_and_mce_is_relative_to_the_baseline(tmp_path):
    means = torch.arange(50, 210, 4)  # of 255; the thresholds lie between two of the 255 values
    images = (means / 255)[:, None, None, None].expand(-1, 1, 8, 8).contiguous()
    labels = (means > 127.5).long()
    model, twin = Bright(127.5 / 255), Bright(152.5 / 255)
    told = []
    settings = {"baseline": twin, "batch_size": 40, "folder": tmp_path, "on_kind": lambda *each: told.append(each)}
    found = corruptions(model, (images, labels), ["brightness", "contrast"], (1, 5), **settings)
    assert (found.n, found.clean_accuracy) == (40, 100.0)
    for severity, added in ((1, 13), (5, 76)):  # 0.05 and 0.3
        for threshold, grid in ((127.5, found.accuracy), (152.5, found.baseline)):
            right = (means + added > threshold) == labels.bool()
            assert grid["brightness"][severity] == pytest.approx(100 * int(right.sum()) / 40)
    errors = [sum(100 - each for each in grid["brightness"].values()) for grid in (found.accuracy, found.baseline)]
    assert found.corruption_errors["brightness"] == pytest.approx(100 * errors[0] / errors[1])
    assert found.accuracy["contrast"] == {1: 100.0, 5: 100.0}  # an even image has no contrast to lose
    assert found.corruption_errors["contrast"] == 0
    assert found.mce == pytest.approx(found.corruption_errors["brightness"] / 2)
    assert f"mCE {found.mce:.1f} %" in str(found)
    json.dumps(found.to_json(), allow_nan=False)

    assert [kind for kind, _ in told] == ["brightness", "contrast"]
    assert corruptions(model, (images, labels), ["brightness", "contrast"], (1, 5), **settings) == found
    assert len(told) == 2  # nothing was measured again
    path = next(tmp_path.glob("corruption_brightness-*.json"))
    path.write_text(path.read_text().replace("figures", "numbers"))
    with pytest.warns(UserWarning, match="damaged"):
        assert corruptions(model, (images, labels), ["brightness", "contrast"], (1, 5), **settings) == found
    with torch.no_grad():
        model.threshold += 0.2  # another network
    assert corruptions(model, (images, labels), ["brightness", "contrast"], (1, 5), **settings) != found


def test_without_a_baseline_there_is_no_mce_and_a_perfect_baseline_gives_none():
    alone = Corruptions(10, 90.0, {"fog": {1: 80.0, 2: 60.0}}, {"fog": {1: 1.0, 2: 3.0}})
    assert (alone.mce, alone.corruption_errors, alone.mean_accuracy, alone.mean_ece) == (None, {"fog": 30.0}, 70.0, 2.0)
    assert "no mCE (no baseline)" in alone.sentence
    assert alone.table.header == ["corruption", "severity 1", "severity 2", "mean"]
    perfect = Corruptions(10, 90.0, alone.accuracy, alone.ece, {"fog": {1: 100.0, 2: 100.0}})
    assert (perfect.mce, perfect.corruption_errors) == (None, {})
    assert perfect.table.rows == [["fog", "80.0", "60.0", "70.0", "-"]]
