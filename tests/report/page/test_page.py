"""The page as a file: what stands in it, what it refuses, how large it gets."""

from __future__ import annotations

import copy
import json
import re
import shlex
from html import unescape
from pathlib import Path

import pytest
from commands import invoke, mistake
from runs import ALL_METRICS, quick

from biotorch.experiment import run
from biotorch.experiment.results import load_results
from biotorch.report.page import write_page
from biotorch.report.page.content import repetition
from biotorch.results.collecting import Collection, Run, collect


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    run(quick(folder, "sweep={model.mode.type: [backpropagation, fa], experiment.seed: [0, 1]}", *ALL_METRICS))
    return folder / "quick"


def data(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def test_report_writes_one_file_that_asks_for_nothing_else(store, tmp_path):
    result = invoke("report", store, "-o", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    assert "page.html" in result.stdout
    page = (tmp_path / "page.html").read_text()
    assert not re.search(r'<(script|img|link|iframe)[^>]*(src|href)="(?!data:)', page)
    shown = data(page)
    assert [curve["name"] for curve in shown["panels"][0]["curves"]] == ["backpropagation", "fa"]
    assert {each["seed"] for each in shown["panels"][0]["curves"][1]["runs"]} == {"0", "1"}
    for found in collect(store).runs:
        assert found.result["state_hash"] in page
        assert found.result["environment"]["torch"] in page


def test_its_values_are_those_of_the_results(store, tmp_path):
    page = write_page(collect(store), tmp_path / "page.html").read_text()
    [panel] = data(page)["panels"]
    for curve in panel["curves"]:
        for each in curve["runs"]:
            result = load_results(store / f"rule={curve['rule']},seed={each['seed']}")
            assert each["validation"]["error"] == pytest.approx(
                [record["validation"]["error"] for record in result["history"]], rel=1e-3
            )
            if curve["rule"] == "fa":
                last = [series[-1] for series in each["layers"]["angles"]]
                assert last == pytest.approx(list(result["history"][-1]["angles"].values()), rel=1e-3)


def test_the_commands_of_a_run_repeat_it_and_name_no_place_of_this_machine(store, tmp_path, monkeypatch):
    page = write_page(collect(store), tmp_path / "page.html").read_text()
    assert str(store.parent) not in page
    commands, config = (
        unescape(re.findall(rf'<code class="{kind}">(.*?)</code>', page, re.S)[-1]) for kind in ("command", "config")
    )
    last = collect(store).runs[-1].result
    assert commands.splitlines()[0].split()[-1] in f"{last['environment']['commit']} package"
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(config)
    assert invoke(*shlex.split(commands.splitlines()[-1])[1:]).exit_code == 0
    assert collect(tmp_path / "repeated").runs[0].result["state_hash"] == last["state_hash"]


def test_data_of_the_writers_machine_are_named_without_their_place(store):
    result = copy.deepcopy(collect(store).runs[0].result)
    result["config"]["data"]["dataset_path"] = "/home/somebody/data"
    for commit, first in ((None, "# biotorch"), ("abc-dirty", "git checkout abc")):
        result["environment"]["commit"] = commit
        config, commands = repetition(result)
        assert commands.startswith(first)
        assert commands.endswith("data.dataset_path=YOUR/data")
        assert "somebody" not in config + commands
    assert result["config"]["data"]["dataset_path"] == "/home/somebody/data"


def test_names_cannot_leave_their_places(store, tmp_path):
    found = collect(store).runs[0]
    result = copy.deepcopy(found.result)
    evil = "</script><script>alert(1)</script>"
    result["config"]["experiment"]["name"] = evil
    result["config"]["model"]["architecture"] = evil
    page = write_page(Collection([Run(found.path, result)], [], [evil]), tmp_path / "page.html").read_text()
    assert evil not in page
    assert data(page)["panels"][0]["curves"][0]["network"] == evil


def test_a_hundred_long_runs_of_a_deep_network_stay_under_eight_megabytes(store, tmp_path):
    first = collect(store).runs[-1]
    layers = {f"layers.{number}.conv": 45.123456 for number in range(58)}
    history = [
        {
            **first.result["history"][-1],
            "epoch": epoch,
            **{key: {name: value + epoch / 7 for name, value in layers.items()} for key in ("angles", "norm_ratios")},
        }
        for epoch in range(251)
    ]
    runs = []
    for number in range(100):
        result = copy.deepcopy({**first.result, "history": []})
        result |= {"history": history, "state_hash": f"{number:032x}"}
        result["config"]["experiment"]["seed"] = number
        runs.append(Run(first.path, result))
    path = write_page(Collection(runs, [], []), tmp_path / "page.html")
    assert path.stat().st_size < 8_000_000
    page = path.read_text()
    shown = data(page)
    assert shown["every"] > 1
    assert f"figures show one epoch in {shown['every']}" in page
    assert shown["panels"][0]["curves"][0]["runs"][0]["epochs"][-1] == 250


def test_what_is_left_out_stands_on_it(store, tmp_path):
    found = collect(store)
    page = write_page(
        Collection(found.runs, [Path("half/way")], ["x/results.json is damaged"]), tmp_path / "p.html"
    ).read_text()
    assert "half/way" in page
    assert "x/results.json is damaged" in page
    assert "1 unfinished, 1 unreadable" in page


def test_a_seed_that_is_there_twice_with_different_results_is_told(store, tmp_path):
    found = collect(store).runs
    other = {**copy.deepcopy(found[0].result), "state_hash": "0" * 32}
    page = write_page(Collection([*found, Run(Path("other"), other)], [], []), tmp_path / "page.html").read_text()
    assert "backpropagation: seed 0 occurs 2 times with different results" in page


def test_runs_that_trained_nothing_or_have_undefined_figures_are_shown(store, tmp_path):
    found = collect(store).runs[0]
    evaluated, undefined = copy.deepcopy(found.result), copy.deepcopy(found.result)
    evaluated |= {"history": [], "validation": None}
    evaluated["config"]["training"] = None
    undefined["test"]["loss"] = None
    undefined["history"][-1]["gradient_angles"] = dict.fromkeys(undefined["history"][-1]["gradient_angles"])
    runs = [Run(found.path, evaluated), Run(Path("other"), undefined)]
    assert data(write_page(Collection(runs, [], []), tmp_path / "page.html").read_text())["trained"]
    alone = data(write_page(Collection(runs[:1], [], []), tmp_path / "alone.html").read_text())
    assert not alone["trained"]
    assert alone["panels"][0]["curves"][0]["optimizer"] == "-"


def test_nothing_finished_makes_no_page(tmp_path):
    with pytest.raises(ValueError, match="at least one finished run"):
        write_page(Collection([], [], []), tmp_path / "page.html")


def test_places_that_cannot_be_written_are_mistakes(store, tmp_path):
    assert "ends in .html" in mistake(invoke("report", store, "-o", tmp_path / "page.pdf"))
    (tmp_path / "file").write_text("")
    assert "file" in mistake(invoke("report", store, "-o", tmp_path / "file" / "page.html"))


def test_regressions_stand_beside_classifications(store, tmp_path):
    """Each has its own figures, panels, axes and differences."""
    found = collect(store).runs
    for path, result in [(each.path, copy.deepcopy(each.result)) for each in found]:
        result["config"]["data"]["dataset"] = "diabetes"
        result["state_hash"] += " of a regression"
        r2 = 0.25 if result["config"]["model"]["mode"]["type"] == "fa" else 0.5
        figures = {"loss": 0.5, "rmse": 53.2, "r2": r2 - 0.125 * result["config"]["experiment"]["seed"]}
        result |= {"test": figures, "validation": figures}
        for record in result["history"]:
            record.update({split: figures for split in ("validation", "train") if split in record})
        found.append(Run(path, result))
    page = write_page(Collection(found, [], []), tmp_path / "page.html").read_text()
    heads = {"error": "error (%)", "r2": "R²", "rmse": "RMSE", "loss": "loss", "top_3_error": "top 3 error (%)"}
    assert data(page)["quantities"] == heads
    assert [panel["title"] for panel in data(page)["panels"]] == [
        "le_net_mnist, SGD, digits", "le_net_mnist, SGD, diabetes",
    ]  # fmt: skip
    assert "test R² 0.375, RMSE 53.20" in page
    cells = re.findall(r"<t[hd][^>]*>(?:<abbr[^>]*>)?(.*?)<", page[page.index('id="differences"') :])
    assert cells[cells.index("diabetes") + 1 :][:3] == ["fa", "test R²", "-0.250"]
