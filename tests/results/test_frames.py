"""Runs as pandas frames: seeds, pairs, problems."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import scipy.stats
from made_results import made
from places import ROOT

import biotorch
from biotorch.report import table
from biotorch.results.groups import by_configuration, without_copies


def stored(folder, results):
    for number, result in enumerate(results):
        (folder / str(number)).mkdir(parents=True)
        (folder / str(number) / "results.json").write_text(json.dumps(result))
    return folder


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


def test_summary_begins_with_the_rule_and_has_no_column_that_says_nothing(results, tmp_path):
    runs = [made(results[0], rule, seed=seed) for rule in ("backpropagation", "fa") for seed in (0, 1)]
    found = biotorch.results.summary(biotorch.results.load(stored(tmp_path / "a", runs)))
    assert list(found) == ["rule", "mean", "std", "n"]
    assert found.attrs["value"] == "test_error"
    assert found.attrs["common"] == {
        "dataset": "digits", "architecture": "le_net_mnist", "optimizer": "SGD", "epochs": 1,
    }  # fmt: skip
    pairs = biotorch.results.paired(biotorch.results.load(tmp_path / "a"), baseline="BP")
    assert list(pairs) == ["rule", "difference", "std", "n", "low", "high"]
    runs += [made(results[0], data__dataset="mnist"), made(results[0], training__optimizer__lr=0.7)]
    found = biotorch.results.summary(biotorch.results.load(stored(tmp_path / "b", runs)))
    assert list(found) == ["rule", "label", "dataset", "mean", "std", "n", "paper"]


def test_a_copy_of_a_run_counts_once(results, tmp_path):
    stored(tmp_path, [made(results[0]), made(results[0], seed=1)])
    shutil.copytree(tmp_path / "0", tmp_path / "again")
    with pytest.warns(UserWarning, match="1 runs are copies of others"):
        frame = biotorch.results.load(tmp_path)
    assert len(frame) == 2
    assert table([made(results[0])] * 2).rows[0][-1] == "1"
    measured = {"config": {**results[0]["config"], "training": None}, "history": []}
    one, other, unknown = (
        {**results[0], **measured, "data": {"digest": digest, "files": {"a": {"times": digest}} if digest else {}}}
        for digest in ("1", "2", None)
    )
    assert without_copies([unknown, one, other, one]) == [unknown, other]  # of one network, on different data


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
    assert biotorch.results.frames.quantile(freedom) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), rel=1e-3)


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
    (tmp_path / "runs" / "small").symlink_to(store)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "results.md").read_text(), flags=re.DOTALL)
    exec("\n".join(blocks), {"__name__": "results_doc"})
    assert (tmp_path / "figures" / "layers_fa.pdf").is_file()
    assert "| backpropagation |" in capsys.readouterr().out


def test_regressions_are_compared_by_r2_unless_told(results, tmp_path):
    runs = []
    for rule, r2, rmse in (("backpropagation", 0.5, 50.0), ("fa", 0.25, 60.0)):
        for seed in (0, 1):
            run = made(results[0], rule, seed=seed)
            run["test"] = {"loss": 0.5, "r2": r2 + 0.125 * seed, "rmse": rmse}
            runs.append(run)
    frame = biotorch.results.load(stored(tmp_path, runs))
    assert frame["test_error"].isna().all()
    assert biotorch.results.summary(frame)["mean"].tolist() == [0.5625, 0.3125]
    assert biotorch.results.paired(frame)["difference"].tolist() == [-0.25]
    assert biotorch.results.paired(frame, value="test_rmse")["difference"].tolist() == [10.0]
