"""The headline table: groups, the paper's figures, Markdown, LaTeX, CSV."""

from __future__ import annotations

import re

import pytest
from made_results import made
from places import ROOT

from biotorch._tables import Table
from biotorch.report import table
from biotorch.results.groups import by_configuration, label, published_error

# The headline table ----------------------------------------------------------------------------------


def test_runs_of_several_data_sets_and_networks_have_columns_for_them(results):
    runs = [
        made(results[0], rule, seed=seed, data__dataset=name, training__optimizer__type="SGD")
        for name in ("mnist", "fashion_mnist") for rule in ("backpropagation", "fa") for seed in (0, 1)
    ]  # fmt: skip
    found = table(runs)
    assert found.header[:2] == ["data set", "rule"]
    assert [row[:2] for row in found.rows] == [
        ["mnist", "backpropagation"], ["mnist", "fa"], ["fashion_mnist", "backpropagation"], ["fashion_mnist", "fa"],
    ]  # fmt: skip
    assert found.header[3] == "paper"
    assert [row[3] for row in found.rows] == ["0.91", "1.70", "9.20", "13.06"]
    assert [row[-1] for row in found.rows] == ["2"] * 4
    assert found.title == "le_net_mnist, 1 epoch"
    assert any("100 (fashion_mnist), 100 (mnist) epochs" in note for note in found.notes)


def test_settings_that_differ_are_rows_of_their_own_with_what_differs(results):
    runs = [made(results[0]), made(results[0], training__hyperparameters__epochs=4), made(results[0], seed=5)]
    found = table(runs)
    column = found.header.index("epochs")
    assert [(row[column], row[-1]) for row in found.rows] == [("1", "2"), ("4", "1")]
    groups = by_configuration([made(results[0]), made(results[0], infrastructure__precision="bf16-mixed")])
    assert [label(group, groups) for group in groups] == ["fa precision=32", "fa precision=bf16-mixed"]
    losses = [{"name": "MSELoss"}, {"name": "L1Loss"}]
    groups = by_configuration([made(results[0], model__loss_function=each, data__categorical=[]) for each in losses])
    assert [label(group, groups) for group in groups] == ["fa loss=MSELoss", "fa loss=L1Loss"]
    groups = by_configuration([made(results[0], data__categorical=each) for each in ([], ["a"])])
    assert [label(group, groups) for group in groups] == ["fa", "fa categorical=['a']"]


def test_the_paper_has_no_figure_for_other_settings(results):
    base = made(results[0], "dfa", data__dataset="mnist")["config"]
    assert published_error(base) == 1.61
    others = {"data__dataset": "digits", "training__optimizer__type": "Adam", "model__train_only": ["x"]}
    for path, value in others.items():
        assert published_error(made(results[0], "dfa", **{"data__dataset": "mnist", path: value})["config"]) is None
    imagenet = {"data__dataset": "imagenet", "model__architecture": "resnet18"}
    by_adam = made(results[0], "dfa", **imagenet, training__optimizer__type="Adam")
    assert published_error(by_adam["config"]) == 82.45
    assert published_error(made(results[0], "dfa", **imagenet)["config"]) is None
    assert published_error(made(results[0], "fa", **imagenet)["config"]) == 85.25


def test_the_published_figures_are_those_of_the_papers_text():
    paper = ROOT.parent / "shared" / "paper.txt"
    if not paper.is_file():
        pytest.skip("the paper's text is not here")
    text = paper.read_text()
    from biotorch.results.groups import _ERRORS

    for errors in _ERRORS.values():
        for error in errors:
            shown = f"{error:g}".removeprefix("0").replace(".", r"\.")
            assert re.search(rf"(?<!\d)0?{shown}0?(?!\d)", text), error


def test_no_results_are_no_table():
    with pytest.raises(ValueError, match="at least one"):
        table([])


# Formats ---------------------------------------------------------------------------------------------


ODD = Table("50 % of a_b & c", ["rule", "error (%)"], [["a|b_{c}", "1.0 ± 0.1"], ["x\\y", "89 → 41"]], ["n ~ 3 #1"])


def test_markdown_keeps_its_columns():
    rows = [line for line in ODD.markdown().splitlines() if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in rows)


def test_latex_escapes_what_it_would_take_for_its_own():
    text = ODD.latex()
    assert r"a|b\_\{c\} & 1.0 $\pm$ 0.1 \\" in text
    assert r"x\textbackslash{}y & 89 $\to$ 41 \\" in text
    assert r"\caption{50 \% of a\_b \& c. n \textasciitilde{} 3 \#1}" in text
    assert text.count(r"\begin") == text.count(r"\end") == 2


def test_csv_is_read_back(tmp_path):
    import csv

    assert list(csv.reader(ODD.csv().splitlines())) == [ODD.header, *ODD.rows]


# Regressions -----------------------------------------------------------------------------------------


def test_a_regression_has_other_figures_and_no_error(results):
    """Beside classifications there are dashes; a figure that is null for one seed has no mean."""
    runs = [made(results[0], "fa", seed=seed) for seed in (0, 1)]
    for seed, r2 in ((0, 0.5), (1, 0.25), (2, None)):
        run = made(results[0], "fa" if r2 is None else "dfa", seed=seed, data__dataset="diabetes")
        run["test"] = {"loss": 0.5, "rmse": 53.2127 + seed, "r2": r2}
        runs.append(run)
    found = table(runs)
    assert found.header[2:5] == ["test error (%)", "test R²", "test RMSE"]
    assert [row[2:5] for row in found.rows] == [
        ["5.00 ± 0.00", "-", "-"], ["-", "-", "55.21"], ["-", "0.375 ± 0.177", "53.71 ± 0.71"],
    ]  # fmt: skip
