"""Runs as tables: pandas, Markdown, LaTeX, CSV; seeds, pairs, the paper's figures."""

from __future__ import annotations

import copy
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import scipy.stats
from runs import quick

import biotorch
from biotorch._tables import Table
from biotorch.experiment import run
from biotorch.report import table
from biotorch.results.groups import by_configuration, label, published_error

ROOT = Path(__file__).parents[1]
SWEEP = "sweep={model.mode.type: [backpropagation, fa], experiment.seed: [0, 1, 2]}"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    run(quick(folder, SWEEP, "training.metrics={weight_alignment: true, gradient_alignment: true}"))
    return folder / "quick"


@pytest.fixture(scope="module")
def results(store):
    return [json.loads(path.read_text()) for path in sorted(store.glob("*/results.json"))]


def made(result, rule="fa", error=5.0, seed=0, **changes):
    """A result with other figures and settings."""
    result = copy.deepcopy(result)
    result["config"]["model"]["mode"]["type"] = rule
    result["config"]["experiment"]["seed"] = seed
    result["test"]["error"] = error
    result["state_hash"] = f"{rule} {seed} {error} {changes}"
    for path, value in changes.items():
        *parents, last = path.split("__")
        section = result["config"]
        for parent in parents:
            section = section[parent]
        section[last] = value
    return result


def stored(folder, results):
    for number, result in enumerate(results):
        (folder / str(number)).mkdir(parents=True)
        (folder / str(number) / "results.json").write_text(json.dumps(result))
    return folder


# pandas ----------------------------------------------------------------------------------------------


def test_every_run_is_a_row(store, results):
    frame = biotorch.results.load(store)
    assert len(frame) == 6
    assert list(frame["label"].unique()) == ["backpropagation", "fa"]
    assert set(frame["test_error"]) == {result["test"]["error"] for result in results}
    assert (frame["epochs"] == 1).all()
    assert frame[frame.rule == "fa"]["weight_angle"].between(80, 100).all()
    assert frame["path"].map(lambda path: (Path(path) / "results.json").is_file()).all()


def test_keys_that_differ_get_a_column(results, tmp_path):
    frame = biotorch.results.load(
        stored(tmp_path, [made(results[0]), made(results[0], training__hyperparameters__batch_size=7)])
    )
    assert list(frame["training.hyperparameters.batch_size"]) == [64, 7]
    assert "training.optimizer.momentum" not in frame.columns
    assert list(frame["label"]) == ["fa batch_size=64", "fa batch_size=7"]


def test_summary_is_mean_std_and_n_over_seeds_and_never_over_settings(results, tmp_path):
    runs = [made(results[0], error=error, seed=seed) for seed, error in enumerate((4.0, 6.0, 8.0))]
    runs += [made(results[0], error=50.0, seed=9, training__hyperparameters__epochs=9)]
    found = biotorch.results.summary(biotorch.results.load(stored(tmp_path, runs)))
    assert found[["epochs", "mean", "n"]].values.tolist() == [[1, 6.0, 3], [9, 50.0, 1]]
    assert found["std"][0] == 2.0
    assert math.isnan(found["std"][1])


def test_a_copy_of_a_run_counts_once(results, tmp_path):
    stored(tmp_path, [made(results[0]), made(results[0], seed=1)])
    shutil.copytree(tmp_path / "0", tmp_path / "again")
    with pytest.warns(UserWarning, match="1 runs are copies of others"):
        frame = biotorch.results.load(tmp_path)
    assert len(frame) == 2
    assert table([made(results[0])] * 2).rows[0][-1] == "1"


def test_a_name_that_repeats_or_another_folder_does_not_keep_seeds_apart(results):
    runs = [made(results[0], seed=0), made(results[0], seed=1, experiment__name="other", experiment__output_dir="x")]
    assert len(by_configuration(runs)) == 1


def test_problems_are_warned_of_and_unfinished_runs_are_named(store, tmp_path):
    shutil.copytree(store, tmp_path / "s")
    first, second, *_ = sorted((tmp_path / "s").glob("rule=*"))
    (first / "results.json").write_text("{")
    (second / "results.json").unlink()
    with pytest.warns(UserWarning, match="damaged"):
        frame = biotorch.results.load(tmp_path / "s")
    assert len(frame) == 4
    assert frame.attrs["unfinished"] == [str(second)]


def test_pairs_are_of_one_seed_and_their_interval_is_students(results, tmp_path):
    runs = [made(results[0], "backpropagation", error, seed) for seed, error in enumerate((1.0, 2.0, 3.0, 9.0))]
    errors = enumerate((2.0, 4.0, 3.5))
    runs += [made(results[0], "fa", error, seed, training__optimizer__lr=0.5) for seed, error in errors]
    found = biotorch.results.paired(biotorch.results.load(stored(tmp_path, runs)))
    differences = [1.0, 2.0, 0.5]
    low, high = scipy.stats.t.interval(0.95, 2, sum(differences) / 3, scipy.stats.sem(differences))
    assert found["n"].tolist() == [3]
    assert found["difference"][0] == pytest.approx(sum(differences) / 3)
    assert (found["low"][0], found["high"][0]) == (pytest.approx(low, abs=1e-3), pytest.approx(high, abs=1e-3))


@pytest.mark.parametrize("freedom", [1, 2, 10, 30, 31, 60, 500])
def test_quantiles_of_students_t(freedom):
    assert biotorch.results._quantile(freedom) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), rel=1e-3)


def test_what_cannot_be_paired_is_refused(results, tmp_path):
    frame = biotorch.results.load(stored(tmp_path / "a", [made(results[0])]))
    with pytest.raises(ValueError, match="no run of 'backpropagation'; there are fa"):
        biotorch.results.paired(frame)
    with pytest.raises(ValueError, match="no column 'error'"):
        biotorch.results.summary(frame, "error")
    twice = [made(results[0]), made(results[0], training__hyperparameters__batch_size=7), made(results[0], "dfa")]
    with pytest.raises(ValueError, match="several runs of one rule and seed"):
        biotorch.results.paired(biotorch.results.load(stored(tmp_path / "b", twice)), "dfa")


def test_pandas_is_loaded_when_results_are(store):
    code = "import sys, biotorch; assert 'pandas' not in sys.modules; biotorch.results; assert 'pandas' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'result'"):
        _ = biotorch.result


def test_the_examples_of_the_docs_run(store, tmp_path, monkeypatch, capsys):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(store)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "results.md").read_text(), flags=re.DOTALL)
    exec("\n".join(blocks), {"__name__": "results_doc"})
    assert (tmp_path / "figures" / "layers_fa.pdf").is_file()
    assert "| backpropagation |" in capsys.readouterr().out


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
    assert found.title == "le_net_mnist, 1 epochs"
    assert any("100 (fashion_mnist), 100 (mnist) epochs" in note for note in found.notes)


def test_settings_that_differ_are_rows_of_their_own_with_what_differs(results):
    runs = [made(results[0]), made(results[0], training__hyperparameters__epochs=4), made(results[0], seed=5)]
    found = table(runs)
    column = found.header.index("epochs")
    assert [(row[column], row[-1]) for row in found.rows] == [("1", "2"), ("4", "1")]
    groups = by_configuration([made(results[0]), made(results[0], infrastructure__precision="bf16-mixed")])
    assert [label(group, groups) for group in groups] == ["fa precision=32", "fa precision=bf16-mixed"]


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
    from biotorch.results.groups import _ERRORS  # noqa: PLC0415

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
    import csv  # noqa: PLC0415

    assert list(csv.reader(ODD.csv().splitlines())) == [ODD.header, *ODD.rows]
