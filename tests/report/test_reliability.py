"""Figures of corruptions and calibration, still and on the page, drawn from made-up studies."""

from __future__ import annotations

import pytest
from matplotlib.image import imread

from biotorch.report import calibration_figure, corruption_figure
from biotorch.report.page.figures import beside_attacks as on_page
from biotorch.report.reliability import draw_calibration, draw_corruptions
from biotorch.robustness import Calibration, Corruptions


def study(rule, seed=0, fog=(90.0, 70.0), snow=(80.0, 40.0), bins=((1, 0.0, 30.0), (9, 100.0, 95.0)), **parts):
    grid, errors = {"fog": dict(enumerate(fog, 1)), "snow": dict(enumerate(snow, 1))}, {"fog": {1: 2.0, 2: 4.0}}
    found = {
        "corruptions": Corruptions(10, 100.0, grid, errors | {"snow": {1: 4.0, 2: 8.0}}).to_json(),
        "calibration": Calibration(10, 90.0, 88.5, 7.5, list(bins)).to_json(),
    }
    found["corruptions"]["accuracy"] = {kind: {str(s): a for s, a in row.items()} for kind, row in grid.items()}
    return {
        "config": {
            "model": {"architecture": "mlp", "mode": {"type": rule}},
            "experiment": {"seed": seed},
            "data": {"dataset": "digits"},
        },
        "study": {"measurements": []},
        **{name: parts.get(name, each) for name, each in found.items()},
    }


def curves(axes):
    return {
        line.get_label(): line.get_xydata().tolist()
        for line in axes.get_lines()
        if not line.get_label().startswith("_") and len(line.get_xdata())
    }


def test_a_panel_for_the_mean_and_one_for_each_kind_with_means_over_seeds(tmp_path):
    studies = [study("backpropagation"), study("fa"), study("fa", seed=1, fog=(50.0, 30.0))]
    figure = draw_corruptions(studies)
    panels = {axes.get_title(): curves(axes) for axes in figure.axes if axes.axison}
    assert list(panels) == ["mean of all kinds", "fog", "snow"]
    assert panels["fog"] == {
        "backpropagation": [[0, 100], [1, 90], [2, 70]],
        "fa": [[0, 100], [1, 70], [2, 50]],
    }
    assert panels["mean of all kinds"]["backpropagation"] == [[0, 100], [1, 85], [2, 55]]
    assert "standard deviation over seeds" in figure.legends[0].get_title().get_text()
    assert imread(corruption_figure(studies, tmp_path / "c.png")).std() > 0.01


def test_the_diagram_pools_the_bins_of_all_seeds_and_the_error_rises_from_the_clean_one(tmp_path):
    studies = [study("fa"), study("fa", seed=1, bins=((3, 100.0, 28.0), (1, 0.0, 97.0)))]
    left, right = draw_calibration(studies).axes
    points = [each.get_offsets().tolist() for each in left.collections]
    assert points == [[[pytest.approx(28.5), 75], [pytest.approx(95.2), 90]]]
    assert curves(right) == {"fa": [[0, 7.5], [1, 3], [2, 6]]}
    assert len(draw_calibration([study("fa", corruptions=None)]).axes) == 1
    assert imread(calibration_figure(studies, tmp_path / "r.png")).std() > 0.01


def test_what_was_not_measured_is_not_drawn(tmp_path):
    plain = study("fa", corruptions=None, calibration=None)
    assert draw_corruptions([plain]) is None
    assert calibration_figure([plain], tmp_path / "r.png") is None
    assert on_page([plain]) == []
    assert list(curves(draw_corruptions([plain, study("kp")]).axes[0])) == ["kp"]


def test_the_page_has_the_curves_of_the_still_figures():
    found = {each["name"]: each for each in on_page([study("fa")])}
    names = [f"corruptions, {kind}" for kind in ("mean of all kinds", "fog", "snow")]
    assert list(found) == [*names, "calibration error under corruptions", "calibration"]
    [fog] = found["corruptions, fog"]["panels"][0]["curves"]
    assert (fog["rule"], fog["x"], fog["mean"]) == ("fa", [0, 1, 2], [100, 90, 70])
    [diagram] = found["calibration"]["panels"][0]["curves"]
    assert (diagram["x"], diagram["mean"], diagram["share"]) == ([30, 95], [0, 100], [10, 90])
