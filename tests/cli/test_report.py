"""`biotorch report`: a table and figures of whatever lies in some folders."""

from __future__ import annotations

import csv
import shutil

import pytest
from commands import invoke, mistake
from matplotlib.figure import Figure
from runs import quick

from biotorch.experiment import run
from biotorch.report import draw_all, style
from biotorch.results.collecting import collect


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    run(quick(folder, "sweep={model.mode.type: [backpropagation, fa]}", "training.metrics.weight_alignment=true"))
    return folder / "quick"


@pytest.mark.parametrize("suffix", ["md", "tex", "csv"])
def test_the_table_is_printed_and_written(store, tmp_path, suffix):
    result = invoke("report", store, "--table", tmp_path / f"table.{suffix}")
    assert result.exit_code == 0, result.output
    text = (tmp_path / f"table.{suffix}").read_text()
    for rule in ("backpropagation", "fa"):
        assert rule in result.stdout
        assert rule in text
    if suffix == "csv":
        assert len(list(csv.DictReader(text.splitlines()))) == 2


def test_latex_alone_is_printed_with_a_label_and_without_versions_in_the_caption(store, tmp_path):
    shutil.copytree(store, tmp_path / "s")
    (tmp_path / "s" / "rule=fa" / "results.json").write_text("{")
    result = invoke("report", tmp_path / "s", "--latex")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("% biotorch ")
    assert (lines[1], lines[-1]) == (r"\begin{table}", r"\end{table}")
    (caption,) = (line for line in lines if line.startswith(r"\caption"))
    assert not {"biotorch", "torch", "threads"} & set(caption.split())
    assert r"\label{tab:le-net-mnist-on-digits-1-epoch}" in lines
    assert "left out: " in result.stderr


def test_figures_are_written_in_the_formats_that_are_asked_for(store, tmp_path):
    result = invoke("report", store, "--figures", tmp_path / "f", "--formats", "png,svg")
    assert result.exit_code == 0, result.output
    written = {path.name for path in (tmp_path / "f").iterdir()}
    assert {"learning.png", "learning.svg", "layers_fa.png"} <= written
    assert all(name in result.stdout for name in written)


def test_a_picture_of_others_is_neither_replaced_nor_removed(store, tmp_path):
    results = collect(store).results
    (tmp_path / "learning.png").write_text("mine")
    assert "learning.png was not drawn by this version" in mistake(invoke("report", store, "--figures", tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["learning.png"]
    (tmp_path / "learning.png").unlink()
    draw_all(results, tmp_path)
    (tmp_path / "depth.png").write_text("mine")
    for result in results:
        result["history"] = [{key: each[key] for key in each if "angles" not in key} for each in result["history"]]
    draw_all(results, tmp_path)
    assert not (tmp_path / "angles.png").exists()  # an old one of ours
    assert (tmp_path / "depth.png").read_text() == "mine"


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_names_in_figures_are_no_formulas(suffix, tmp_path):
    figure = Figure()
    figure.suptitle(r"a$\nothing$b")
    axes = figure.subplots()
    axes.semilogy([1, 2], [1, 1000], label="$x$")
    axes.legend()
    path = style.write(figure, tmp_path / f"figure.{suffix}")
    assert style.is_own(path)
    if suffix == "svg":
        assert r"a$\nothing$b" in path.read_text()
        assert "mathdefault{10^{3}}" in path.read_text()  # in a comment beside what it draws


def test_what_is_left_out_is_told(store, tmp_path):
    shutil.copytree(store, tmp_path / "s")
    (tmp_path / "s" / "rule=fa" / "results.json").write_text("{")
    result = invoke("report", tmp_path / "s")
    assert "left out: " in result.stdout
    assert "damaged" in result.stdout
    (tmp_path / "s" / "rule=backpropagation" / "results.json").unlink()
    assert "no finished run" in mistake(invoke("report", tmp_path / "s"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--table", "x.doc"), ".md, .tex, .csv"), (("--figures", "f", "--formats", "bmp"), "png, svg, pdf")],
)
def test_formats_that_are_not_known_are_refused(store, arguments, message):
    assert message in mistake(invoke("report", store, *arguments))


def test_a_folder_that_is_not_there_is_a_mistake(tmp_path):
    assert "no folder" in mistake(invoke("report", tmp_path / "nowhere"))
