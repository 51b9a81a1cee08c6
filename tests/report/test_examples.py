"""Sheets of adversarial examples."""

from __future__ import annotations

import pytest
import torch
from matplotlib.image import imread

from biotorch.report import example_sheet
from biotorch.report.examples import draw_examples


def examples(n=2, channels=3, size=4):
    images = torch.full((n, channels, size, size), 0.5)
    adversarial = images.clone()
    adversarial[:, :, 0, 0] += 0.02
    adversarial[:, :, 0, 1] -= 0.01
    labels = torch.arange(n)
    return {
        "images": images,
        "adversarial": adversarial,
        "labels": labels,
        "before": labels,
        "after": (labels + 1) % (n + 1),
        "names": None,
        "title": "pgd",
    }


@pytest.mark.parametrize("channels", [1, 3])
def test_a_row_has_the_image_the_magnified_perturbation_and_the_adversarial_image(channels):
    given = examples(channels=channels)
    figure = draw_examples(**given)
    assert figure.get_suptitle() == "pgd\n2 of 2 images that were right are wrong under the attack"
    assert [axes.get_title() for axes in figure.axes[:3]] == ["image", "perturbation \u00d7 25", "adversarial image"]
    shown = [torch.tensor(axes.images[0].get_array()).reshape(4, 4, -1) for axes in figure.axes[:3]]
    torch.testing.assert_close(shown[0], given["images"][0].permute(1, 2, 0))
    torch.testing.assert_close(shown[2], given["adversarial"][0].permute(1, 2, 0))
    for value, place in ((1.0, (0, 0)), (0.25, (0, 1)), (0.5, (2, 2))):
        torch.testing.assert_close(shown[1][place], torch.full((channels,), value), atol=1e-5, rtol=0)
    assert {axes.images[0].get_clim() for axes in figure.axes} == {(0, 1)}


def test_below_stand_the_predictions_by_number_or_name():
    given = examples()
    below = [axes.get_xlabel() for axes in draw_examples(**given).axes]
    assert below == ["0: right", "label: 0", "1: wrong", "1: right", "label: 1", "2: wrong"]
    given["names"] = ["cat", "dog", "great white shark, man-eater, man-eating shark"]
    below = [axes.get_xlabel() for axes in draw_examples(**given).axes]
    assert below == ["cat: right", "label: cat", "dog: wrong", "dog: right", "label: dog", "great white shark,…: wrong"]


def test_eight_examples_at_most_two_in_a_row_with_successes_first_and_the_factor_of_those_shown():
    given = examples(n=11)
    given["adversarial"][2] = 1.0
    given["after"][:9] = given["labels"][:9]  # the attack failed
    figure = draw_examples(**given)
    assert figure.get_suptitle().endswith("2 of 11 images that were right are wrong under the attack")
    assert [axes.get_xlabel() for axes in figure.axes[1::3]] == [f"label: {each}" for each in (9, 10, 0, 1, 2, 3, 4, 5)]
    assert len({round(axes.get_position().y0, 3) for axes in figure.axes}) == 4
    given["adversarial"][2] = given["images"][2]
    given["adversarial"][8] = 1.0  # not shown
    assert draw_examples(**given).axes[1].get_title() == "perturbation \u00d7 25"


def test_without_a_perturbation_there_is_grey_and_no_factor():
    given = examples()
    axes = draw_examples(**{**given, "adversarial": given["images"]}).axes[1]
    assert axes.get_title() == "no perturbation"
    assert (axes.images[0].get_array() == 0.5).all()


def test_a_sheet_is_written(tmp_path):
    path = example_sheet(**examples(n=1), path=tmp_path / "new" / "sheet.png")
    height, width = imread(path).shape[:2]
    assert width > height > 500


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("images", torch.zeros(0, 3, 4, 4), r"images: \(n, C, H, W\)"),
        ("images", torch.zeros(2, 2, 4, 4), "C 1 or 3"),
        ("images", torch.zeros(2, 16), r"not \(2, 16\)"),
        ("images", torch.full((2, 3, 4, 4), 2.0), "images: values from 0 to 1 are needed, not 2.0"),
        ("adversarial", torch.zeros(1, 3, 4, 4), "adversarial: "),
        ("adversarial", torch.full((2, 3, 4, 4), torch.nan), "adversarial: values"),
        ("labels", torch.zeros(3, dtype=torch.int64), r"labels: \(2,\) int64"),
        ("after", torch.zeros(2), "after: .*float32"),
    ],
)
def test_what_are_no_examples_is_told(name, value, message):
    with pytest.raises(ValueError, match=message):
        draw_examples(**{**examples(), name: value})
