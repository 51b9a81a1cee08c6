"""Figures 5 and 6 of the paper, drawn from made-up studies."""

from __future__ import annotations

import statistics

import pytest
from matplotlib.image import imread

from biotorch.report import black_box_figure, white_box_figure
from biotorch.report.robustness import draw_black_box, draw_white_box
from biotorch.report.style import STYLE, style
from biotorch.robustness.measurement import interval
from biotorch.rules.registry import position

CLEAN = 80.0


def measurement(attack, robust, epsilon=0.1, gradient=None, told="", purpose="figure", n=1000, **settings):
    return {
        "attack": attack,
        "label": f"{attack} {told}".strip(),
        "gradient": gradient,
        "epsilon": epsilon,
        "purpose": purpose,
        "settings": {"norm": "linf", **settings},
        "n": n,
        "clean_accuracy": CLEAN,
        "robust_accuracy": robust,
        "interval": [robust - 3, robust + 2],
    }


def study(rule, *measurements, seed=0, architecture="resnet20", **model):
    return {
        "config": {
            "model": {"architecture": architecture, "mode": {"type": rule}, **model},
            "experiment": {"seed": seed},
            "data": {"dataset": "cifar10"},
        },
        "study": {"verdict": "masked", "judged_at": 0.1, "measurements": list(measurements)},
    }


def both(attack="pgd", feedback=60.0, true=5.0, **more):
    return [
        measurement(attack, feedback, gradient="feedback", **more),
        measurement(attack, true, gradient="true", **more),
    ]


def square(robust, queries, epsilon=0.1):
    return measurement("square", robust, epsilon, told=f"queries={queries} p_init=0.8", queries=queries, n=500)


def few_pixel(robust, pixels):
    told = f"pixels={pixels} steps=30"
    return measurement("few_pixel", robust, float(pixels), told=told, pixels=pixels, n=500)


def curves(axes):
    """The data of the lines by label and line style; hidden ones there are none."""
    return {(line.get_label(), line.get_linestyle()): line.get_xydata().tolist() for line in axes.get_lines()}


def band(axes, index=0):
    """The lower and upper end at the last x."""
    points = axes.collections[index].get_paths()[0].vertices
    last = points[points[:, 0] == points[:, 0].max()][:, 1]
    return pytest.approx([last.min(), last.max()])


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


# Figure 5 ----------------------------------------------------------------------------------------


def test_a_row_per_gradient_and_a_column_per_attack_in_the_papers_order():
    attacks = ("tpgd", "eot_pgd", "fgsm", "pgd")
    figure = draw_white_box([study("fa", *(each for attack in attacks for each in both(attack)))])
    assert [axes.get_title() for axes in figure.axes[:4]] == [
        "FGSM",
        "PGD",
        "averaged PGD\n(the paper's APGD)",
        "TPGD",
    ]
    assert len(figure.axes) == 8
    assert "what the paper measured" in figure.axes[0].get_ylabel()
    assert "what an attacker gets" in figure.axes[4].get_ylabel()
    assert {axes.get_xlabel() for axes in figure.axes[4:]} == {"ε (L∞)"}
    for above, below in zip(figure.axes[:4], figure.axes[4:], strict=True):
        assert curves(above) == {("fa", "-"): [[0, CLEAN], [0.1, 60]]}
        assert curves(below) == {("fa", "-"): [[0, CLEAN], [0.1, 5]]}
        assert above.get_ylim() == below.get_ylim() == (0, 100)


def test_the_curve_starts_with_the_measured_figure_at_zero_where_there_is_one():
    points = [
        measurement("pgd", robust, epsilon, "true") for epsilon, robust in ((0.1, 5.0), (0.0, 79.0), (0.05, 30.0))
    ]
    figure = draw_white_box([study("fa", *points)])
    assert curves(figure.axes[1]) == {("fa", "-"): [[0, 79], [0.05, 30], [0.1, 5]]}


@pytest.mark.parametrize("more", [{}, {"train_only": ["head"]}])
def test_backpropagation_has_the_same_curve_in_both_rows(more):
    figure = draw_white_box(
        [study("backpropagation", measurement("pgd", 3.0, gradient="true"), **more), study("fa", *both())]
    )
    above, below = (curves(axes) for axes in figure.axes)
    name = "shallow (head only)" if more else "backpropagation"
    assert above[name, "-"] == below[name, "-"] == [[0, CLEAN], [0.1, 3]]
    assert above["fa", "-"] != below["fa", "-"]


def test_a_rule_of_which_one_gradient_was_measured_stands_in_its_row_alone():
    figure = draw_white_box([study("fa", measurement("pgd", 5.0, gradient="true"))])
    above, below = figure.axes
    assert curves(above) == {}
    assert [text.get_text() for text in above.texts] == ["not measured"]
    assert list(curves(below)) == [("fa", "-")]
    assert not below.texts


def test_checks_and_other_attacks_are_left_out():
    others = [measurement(name, 1.0, gradient="true") for name in ("auto_attack", "transfer", "transfer_to")]
    figure = draw_white_box([study("fa", *both(), *others, measurement("pgd", 0.0, 1.0, "true", purpose="check"))])
    assert len(figure.axes) == 2
    assert curves(figure.axes[1]) == {("fa", "-"): [[0, CLEAN], [0.1, 5]]}


def test_random_signs_are_dotted_grey_lines_in_every_panel():
    figure = draw_white_box([study("fa", *both(), *both("fgsm"), measurement("random_signs", 70.0))])
    for axes in figure.axes:
        assert curves(axes)["random signs, fa", ":"] == [[0, CLEAN], [0.1, 70]]
        noise = axes.get_lines()[-1]
        assert 0 < float(noise.get_color()) < 1
    assert legend(figure) == ["fa", "random signs, same markers"]


def test_of_one_seed_the_band_is_the_interval_and_of_several_the_standard_deviation():
    one = draw_white_box([study("fa", *both(true=5.0))])
    assert band(one.axes[1]) == [2, 7]
    assert one.legends[0].get_title().get_text() == "1,000 images; bands: 95 % interval"
    values = [4.0, 6.0, 11.0]
    several = draw_white_box([study("fa", *both(true=value), seed=seed) for seed, value in enumerate(values)])
    assert curves(several.axes[1]) == {("fa", "-"): [[0, CLEAN], [0.1, 7]]}
    spread = statistics.stdev(values)
    assert band(several.axes[1]) == [7 - spread, 7 + spread]
    assert several.legends[0].get_title().get_text() == "1,000 images; bands: standard deviation over seeds"
    assert legend(several) == ["fa (seeds: 3)"]


def test_the_accuracy_without_an_attack_has_its_interval():
    figure = draw_white_box([study("fa", *both())])
    points = figure.axes[1].collections[0].get_paths()[0].vertices
    first = points[points[:, 0] == 0][:, 1]
    assert [first.min(), first.max()] == pytest.approx(interval(800, 1000))


def test_the_mean_is_over_what_all_seeds_were_measured_at():
    more = measurement("pgd", 90.0, 0.05, "true")
    figure = draw_white_box([study("fa", *both(), more), study("fa", *both(true=7.0), seed=1)])
    assert curves(figure.axes[1]) == {("fa", "-"): [[0, CLEAN], [0.1, 6]]}


def test_two_studies_of_one_run_are_not_two_seeds():
    figure = draw_white_box([study("fa", *both()), study("fa", *both("fgsm"))])
    assert len(figure.axes) == 4
    assert legend(figure) == ["fa"]
    assert band(figure.axes[2]) == [2, 7]


def test_rules_have_their_colours_and_markers_and_networks_of_a_rule_their_fill():
    names = [*sorted(STYLE, key=position), "a rule of my own"]
    figure = draw_white_box([study(name, *both()) for name in names])
    looks = [(line.get_color(), line.get_marker()) for line in figure.axes[1].get_lines()]
    assert looks == [style(name) for name in names]
    assert len({marker for _, marker in looks}) == len({color for color, _ in looks}) == len(names)
    figure = draw_white_box([study("fa", *both(), architecture=name) for name in ("resnet20", "lenet")])
    assert legend(figure) == ["fa resnet20", "fa lenet"]
    assert [line.get_fillstyle() for line in figure.axes[1].get_lines()] == ["full", "none"]


def test_architectures_are_named_where_there_are_several_and_in_the_title_where_there_is_one():
    same = draw_white_box([study("fa", *both()), study("dfa", *both())])
    assert (same.get_suptitle(), legend(same)) == ("resnet20 on cifar10", ["fa", "dfa"])
    other = draw_white_box([study("fa", *both()), study("dfa", *both(), architecture="lenet")])
    assert (other.get_suptitle(), legend(other)) == ("", ["fa resnet20", "dfa lenet"])


def test_variants_of_an_attack_have_line_styles():
    few = both(true=20.0, told="steps=10 step_size=0.01")
    figure = draw_white_box([study("fa", *both(), *few, *both("fgsm"))])
    assert curves(figure.axes[3]) == {("fa", "-"): [[0, CLEAN], [0.1, 5]], ("fa", "--"): [[0, CLEAN], [0.1, 20]]}
    assert legend(figure) == ["fa", "PGD, default settings", "PGD, steps=10 step_size=0.01"]


# Figure 6 ----------------------------------------------------------------------------------------


def test_pixels_to_the_left_and_square_to_the_right_with_a_line_style_per_number_of_queries():
    attacks = [few_pixel(60.0, 2), few_pixel(70.0, 1), square(40.0, 50), square(10.0, 1000), square(50.0, 50, 0.05)]
    figure = draw_black_box([study("fa", *attacks), study("backpropagation", few_pixel(20.0, 1))])
    left, right = figure.axes
    assert (left.get_title(), left.get_xlabel()) == ("few-pixel", "pixels changed")
    assert (right.get_title(), right.get_xlabel()) == ("Square", "ε (L∞)")
    assert curves(left) == {
        ("fa", "-"): [[0, CLEAN], [1, 70], [2, 60]],
        ("backpropagation", "-"): [[0, CLEAN], [1, 20]],
    }
    assert curves(right) == {
        ("fa", "-"): [[0, CLEAN], [0.05, 50], [0.1, 40]],
        ("fa", "--"): [[0, CLEAN], [0.1, 10]],
    }
    assert legend(figure) == ["backpropagation", "fa", "Square, 50 queries", "Square, 1,000 queries"]
    assert figure.legends[0].get_title().get_text().startswith("500 images")


@pytest.mark.parametrize(("attack", "title"), [(few_pixel(1.0, 1), "few-pixel"), (square(1.0, 50), "Square")])
def test_a_black_box_attack_that_was_not_measured_has_no_panel(attack, title):
    assert [axes.get_title() for axes in draw_black_box([study("fa", attack)]).axes] == [title]


# Both --------------------------------------------------------------------------------------------


def test_where_nothing_was_measured_nothing_is_written(tmp_path):
    path = tmp_path / "figure.png"
    assert white_box_figure([], path) is black_box_figure([], path) is None
    assert white_box_figure([study("fa", square(1.0, 50), measurement("random_signs", 50.0))], path) is None
    assert black_box_figure([study("fa", *both())], path) is None
    assert white_box_figure([study("fa", measurement("pgd", 0.0, gradient="true", purpose="check"))], path) is None
    assert not path.exists()


def test_figures_are_written_for_print_and_fit_the_page(tmp_path):
    studies = [study(rule, *both(), square(1.0, 50)) for rule in ("a_rule_with_a_rather_long_name", "fa", "dfa", "usf")]
    for write in (white_box_figure, black_box_figure):
        path = write(studies, tmp_path / "new" / f"{write.__name__}.png")
        height, width = imread(path).shape[:2]
        assert 1000 < width < 4000
        assert 1000 < height < 3000
    figure = draw_white_box(studies)
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
