"""biotorch.plots: every form of a source gives the same figure, values are right, matplotlib stays as it is."""

from __future__ import annotations

import matplotlib as mpl
import pytest
import torch
from networks import batch, labels, mlp
from studies import EPSILONS, N, network, quick
from torch import nn

import biotorch
from biotorch import metrics, plots


def record(epoch, error=10.0):
    angles = {"0": 90.0 - epoch, "2": 80.0 - epoch}
    return {
        "angles": angles,
        "gradient_angles": angles,
        "norm_ratios": {"0": 1.0, "2": 2.0},
        "validation": {"error": error - epoch},
        "train": {"error": 5.0},
    }


HISTORY = [record(epoch) for epoch in range(3)]


def drawn(axes):
    return {
        line.get_label(): line.get_ydata().tolist() for line in axes.get_lines() if not line.get_label().startswith("_")
    }


# Sources -----------------------------------------------------------------------------------------


def test_folder_frame_and_rows_of_a_frame_are_the_same_runs(store):
    frame = biotorch.results.load(store)
    by_folder, by_frame, alone = (
        drawn(plots.angles(each).axes[0]) for each in (store, frame, frame[frame.rule == "fa"])
    )
    assert by_folder == by_frame
    assert set(by_folder) == {"backpropagation", "fa"}
    assert alone == {"fa": by_folder["fa"]}


def test_a_history_is_drawn_as_it_is_and_several_are_seeds():
    assert drawn(plots.angles(HISTORY).axes[0]) == {"network": [90.0, 89.0, 88.0]}
    seeds = {"fa": [HISTORY, [record(epoch + 2) for epoch in range(3)]], "dfa": HISTORY}
    assert drawn(plots.angles(seeds).axes[0]) == {"fa": [89.0, 88.0, 87.0], "dfa": [90.0, 89.0, 88.0]}
    assert drawn(plots.errors(seeds).axes[0]) == {"fa": [9.0, 8.0, 7.0], "dfa": [10.0, 9.0, 8.0]}
    assert drawn(plots.depth(seeds).axes[0]) == {"fa": [87.0, 77.0], "dfa": [88.0, 78.0]}


def test_what_fit_returns_is_a_history():
    digits = biotorch.data.load(biotorch.data.DataConfig(dataset="digits"), seed=0)
    model = biotorch.convert(biotorch.models.build("mlp", in_features=64, width=8, depth=1), "fa")
    config = biotorch.training.TrainingConfig(
        hyperparameters={"epochs": 1, "batch_size": 100},
        optimizer={"type": "SGD", "lr": 0.01},
        metrics={"weight_alignment": True},
    )
    history = biotorch.training.fit(model, digits, config, nn.functional.cross_entropy, seed=0)
    [line] = drawn(plots.errors({"fa": history}).axes[0]).values()
    assert line == [each["validation"]["error"] for each in history]
    assert plots.layers(history).axes


def test_the_time_axis_has_the_name_that_it_is_given():
    for figure in (plots.angles(HISTORY, x="update"), plots.layers(HISTORY, x="update")):
        names = {axes.get_xlabel() for axes in figure.axes}
        assert "update" in names
        assert "epoch" not in names


@pytest.mark.parametrize(
    ("draw", "told"),
    [
        (lambda: plots.angles([]), "history .* is needed"),
        (lambda: plots.angles({}), "no runs"),
        (lambda: plots.angles(7), "history .* is needed"),
        (lambda: plots.angles([{"0": 90.0}]), "write history.append"),
        (lambda: plots.angles([{"validation": {"error": 1.0}}]), "no run has `angles`"),
        (lambda: plots.errors([{"angles": {"0": 90.0}}]), "no run has at least two records"),
        (lambda: plots.layers({"fa": HISTORY, "usf": HISTORY}), "choose one of fa, usf"),
        (lambda: plots.layers({"fa": HISTORY, "usf": HISTORY}, "uf"), "Did you mean 'usf'"),
        (lambda: plots.white_box({"fa": HISTORY}), "studies by rule"),
        (lambda: plots.scatter(mlp()), "convert it first"),
        (lambda: plots.scatter(biotorch.convert(mlp(), "dfa")), "no layer has a B in the shape"),
        (lambda: plots.scatter(biotorch.convert(mlp(), "fa"), ["1"]), "unknown layer '1'"),
        (lambda: plots.filters(biotorch.convert(mlp(), "fa")), r"6 values .* give a shape"),
        (lambda: plots.filters(biotorch.convert(mlp(), "fa"), shape=(2, 2)), r"not \(2, 2\)"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_the_cure(draw, told):
    with pytest.raises(ValueError, match=told):
        draw()


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no runs in"):
        plots.angles(tmp_path)


# Networks ----------------------------------------------------------------------------------------


def test_scatter_shows_every_pair_and_the_angle():
    model = biotorch.convert(mlp(), "fa")
    figure = plots.scatter(model)
    for axes, (name, each) in zip(figure.axes, biotorch.layers.connections(model).items(), strict=True):
        points, line = axes.get_lines()
        weight, feedback = each.weight.detach().flatten(), each.effective_feedback.flatten()
        assert points.get_xdata() == pytest.approx(weight.numpy())
        assert points.get_ydata() == pytest.approx(feedback.numpy())
        assert axes.get_title() == f"{name}\n{metrics.alignment_angles(model)[name]:.1f}°"
        (x0, x1), (y0, y1) = line.get_data()
        assert (y1 - y0) / (x1 - x0) == pytest.approx(float(weight @ feedback / (weight @ weight)), rel=1e-5)


def test_filters_are_w_above_b_above_both_updates():
    torch.manual_seed(0)
    model = biotorch.convert(nn.Sequential(nn.Conv2d(1, 3, 2), nn.Flatten(), nn.Linear(27, 3)), "fa")
    inputs, targets = torch.randn(4, 1, 4, 4), labels()
    figure = plots.filters(model, (inputs, targets))
    rows = [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()]
    assert rows == ["W", "B", "update", "true update"]
    pictures = [torch.from_numpy(axes.get_images()[0].get_array().data) for axes in figure.axes if axes.get_visible()]
    nn.functional.cross_entropy(model(inputs), targets).backward()
    shown = [model[0].weight.detach(), model[0].feedback, -model[0].weight.grad]
    for row, expected in enumerate(shown):
        for unit in range(3):
            assert torch.allclose(pictures[3 * row + unit], expected[unit, 0], atol=1e-6)
    assert not torch.allclose(shown[2], torch.stack(pictures[9:])[:, None], atol=1e-4)


def test_filters_of_a_direct_rule_have_a_picture_per_output():
    model = biotorch.convert(nn.Sequential(nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 3)), "dfa")
    figure = plots.filters(model)
    visible = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_ylabel() for axes in visible if axes.get_ylabel()] == ["W", "B, by output"]
    assert len(visible) == 5 + 3


def test_similarity_is_the_cka_of_each_pair_of_layers():
    first, second = mlp(), mlp(width=5)
    inputs = batch(20)
    values = plots.similarity(first, second, inputs).axes[0].get_images()[0].get_array()
    a, b = metrics.representations(first, inputs), metrics.representations(second, inputs)
    assert values.shape == (3, 3)
    assert values[1, 2] == pytest.approx(metrics.cka(a["2"], b["4"]))


# Robustness --------------------------------------------------------------------------------------


def test_studies_by_rule_are_drawn_at_their_epsilons():
    images = torch.rand(N, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    model = biotorch.convert(network(), "fa")
    found = quick(model, (images, model(images).argmax(1)))
    figure = plots.white_box({"fa": found}, title="mine")
    assert figure.get_suptitle() == "mine"
    fgsm = {line.get_label(): line for line in figure.axes[0].get_lines()}["fa"]
    assert fgsm.get_xdata() == pytest.approx([0.0, *EPSILONS])
    with pytest.raises(ValueError, match="no study has a black-box attack"):
        plots.black_box({"fa": found})


# matplotlib --------------------------------------------------------------------------------------


def test_no_setting_of_matplotlib_changes_and_pyplot_knows_no_figure():
    from matplotlib import pyplot

    before, open_before = dict(mpl.rcParams), pyplot.get_fignums()
    plots.angles(HISTORY)
    plots.scatter(biotorch.convert(mlp(), "fa"))
    assert dict(mpl.rcParams) == before
    assert pyplot.get_fignums() == open_before
