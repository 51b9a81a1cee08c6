"""Still figures of training: what they show, and that what was not tracked is not drawn."""

from __future__ import annotations

import itertools

import pytest

from biotorch.report import draw_all
from biotorch.report.angles import draw_angles, draw_depth, draw_layers
from biotorch.report.figures import draw_cost, draw_learning
from biotorch.report.style import STYLE

LAYERS = [f"features.{number}" for number in range(5)]


def result(rule="fa", seed=0, epochs=4, optimizer="SGD", layers=LAYERS, tracked=True, lr=0.1):
    """A run whose angles fall by 5 degrees an epoch and rise by one a layer, and by `seed` in all."""
    history = []
    for epoch in range(epochs + 1):
        record = {"epoch": epoch, "validation": {"error": 50.0 / (epoch + 1) + seed}}
        if epoch:
            record |= {"train": {"error": 40.0 / epoch}, "seconds": 2.0}
        if tracked:
            angles = {name: 80.0 - 5 * epoch + number + seed for number, name in enumerate(layers)}
            record |= {"norm_ratios": {name: 1.0 + epoch for name in layers}, "gradient_angles": angles}
            if rule != "dfa":
                record["angles"] = angles
        history.append(record)
    return {
        "config": {
            "experiment": {"seed": seed},
            "data": {"dataset": "mnist"},
            "model": {"architecture": "le_net_mnist", "mode": {"type": rule}, "train_only": None},
            "training": {"hyperparameters": {"epochs": epochs}, "optimizer": {"type": optimizer, "lr": lr}},
        },
        "history": history,
        "state_hash": f"{rule} {seed}",
        "environment": {"device": "cpu", "threads": 1},
    }


def lines(axes):
    return {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}


def test_layers_have_a_column_for_each_network_and_optimizer_and_a_line_each():
    runs = [result(seed=seed, optimizer=optimizer) for seed in (0, 2) for optimizer in ("SGD", "Adam")]
    found = draw_layers(runs, "fa").axes
    assert [axes.get_title() for axes in found] == 2 * ["le_net_mnist, SGD", "le_net_mnist, Adam"]
    drawn = [line for line in found[0].get_lines() if line.get_label() != "_right angle"]
    assert list(drawn[0].get_ydata()) == [81.0, 76.0, 71.0, 66.0, 61.0]  # the mean over two seeds
    assert len({line.get_color() for line in drawn}) == len(drawn) == len(LAYERS)
    assert list(found[2].get_lines()[0].get_ydata()) == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert [(text.get_text(), text.get_color()) for text in found[2].texts] == [
        (line.get_label(), line.get_color()) for line in found[2].get_lines()
    ]


def test_a_direct_rule_has_ratios_alone():
    assert [axes.get_ylabel() for axes in draw_layers([result("dfa")], "dfa").axes] == ["norm of B / norm of W"]


@pytest.mark.parametrize(("count", "named"), [(1, 1), (20, 10), (60, 15)])
def test_any_number_of_layers(count, named):
    names = [f"layer{number}" for number in range(count)]
    ends = [text.xy[1] for text in draw_layers([result(layers=names)], "fa").axes[0].texts]
    assert len(ends) == named
    assert all(above - below > 0.05 for below, above in itertools.pairwise(ends))
    [axes] = draw_depth([result(layers=names)]).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == names


def test_gradient_alignment_by_depth_is_that_of_the_last_epoch():
    [axes] = draw_depth([result(), result("usf")]).axes
    assert list(lines(axes)) == ["fa", "usf"]
    assert list(lines(axes)["fa"].get_ydata()) == [60.0, 61.0, 62.0, 63.0, 64.0]


def test_the_overview_is_the_mean_over_hidden_layers_with_the_worst_beside_it():
    left, right = draw_angles([result("fa"), result("dfa")]).axes
    assert list(lines(left)) == ["fa", "dfa"]  # the gradient angle
    assert list(lines(right)) == ["fa"]
    assert list(lines(left)["fa"].get_ydata()) == [81.5, 76.5, 71.5, 66.5, 61.5]
    worst = next(line for line in left.get_lines() if line.get_label() == "_worst")
    assert list(worst.get_ydata()) == [83.0, 78.0, 73.0, 68.0, 63.0]
    assert draw_angles([result("fa", layers=LAYERS[:1])]) is None  # only an output layer


def test_learning_curves_end_where_the_shortest_run_of_a_configuration_does():
    short = result(seed=1)
    short["history"] = short["history"][:3]
    [axes] = draw_learning([result(seed=0), short]).axes
    assert list(lines(axes)["fa"].get_xdata()) == [0, 1, 2]
    assert list(lines(axes)["fa"].get_ydata()) == [50.5, 25.5, pytest.approx(50 / 3 + 0.5)]


def test_cost_is_in_seconds_of_training():
    figure = draw_cost([result()])
    assert list(lines(figure.axes[0])["fa"].get_xdata()) == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert "cpu, CPU threads: 1" in figure.get_supxlabel()


def test_one_colour_for_a_rule_and_lines_that_differ_where_it_is_there_twice():
    found = lines(draw_learning([result(lr=0.1), result(lr=0.5), result("dfa")]).axes[0])
    assert {found["fa 0.1"].get_color(), found["fa 0.5"].get_color()} == {STYLE["fa"][0]}
    assert found["fa 0.1"].get_linestyle() != found["fa 0.5"].get_linestyle()
    assert len({color for color, _ in STYLE.values()}) == len({marker for _, marker in STYLE.values()}) == len(STYLE)


def test_angles_that_are_not_known_are_left_out():
    run = result()
    for record in run["history"]:
        record["angles"] = dict.fromkeys(LAYERS)
    run["history"][1]["angles"][LAYERS[0]] = 130.0
    _, right = draw_angles([run]).axes
    assert list(lines(right)["fa"].get_xdata()) == [1]
    assert right.get_ylim()[1] > 130


def test_everything_is_written_in_every_format(tmp_path):
    written = draw_all([result(), result("dfa")], tmp_path, ("png", "svg", "pdf"))
    names = {path.name for path in written}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert {name.split(".")[0] for name in names} == {"learning", "cost", "angles", "depth", "layers_fa", "layers_dfa"}
    assert (tmp_path / "learning.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "learning.pdf").read_bytes()[:4] == b"%PDF"
    assert "le_net_mnist, SGD" in (tmp_path / "learning.svg").read_text()  # text, not outlines


def test_what_was_not_tracked_is_not_drawn_and_old_figures_of_it_go(tmp_path):
    draw_all([result()], tmp_path)
    left = {path.name for path in draw_all([result(tracked=False)], tmp_path)}
    assert left == {"learning.png", "cost.png"}
    assert {path.name for path in tmp_path.iterdir()} == left
    untrained = result()
    untrained["history"] = []
    assert draw_all([untrained], tmp_path) == []
    assert not list(tmp_path.iterdir())


def test_axes_are_logarithmic_around_the_data_with_marks_as_numbers():
    [axes] = draw_learning([result()]).axes
    low, high = axes.get_ylim()
    assert axes.get_yscale() == "log"
    assert 8 < low < 10  # the training set's last error is 10
    assert 50 < high < 60
    assert [axes.yaxis.get_major_formatter()(value, 0) for value in (10, 20, 0.5)] == ["10", "20", "0.5"]
    perfect = result()
    perfect["history"][-1]["train"]["error"] = 0.0
    assert draw_learning([perfect]).axes[0].get_yscale() == "linear"
