"""What is below a folder of results: finished, unfinished, damaged, of another version."""

from __future__ import annotations

import copy
import json
import shutil
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from runs import finish, quick

import biotorch
from biotorch._files import write_json
from biotorch.experiment import DamagedResultError, run
from biotorch.experiment.measure import attack_run
from biotorch.experiment.results import STUDY
from biotorch.report.page.content import content
from biotorch.report.page.figures import figures
from biotorch.report.table import robustness_table, table
from biotorch.results.collecting import collect
from biotorch.results.frames import of_collection

TINY = ("model={architecture: mlp, arguments: {width: 8}, mode: {type: fa}}", "data.target_size=8")
ATTACKS = [
    ("attacks.attacks", ["random_signs", {"type": "pgd", "steps": 4}]),
    ("attacks.epsilons", [0.05]),
    ("attacks.images", 20),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A run by itself, and a sweep of two."""
    folder = tmp_path_factory.mktemp("store")
    finish(folder / "one")
    run(quick(folder / "two", "sweep={model.mode.type: [dfa, usf]}"))
    return folder


@pytest.fixture
def stored(store, tmp_path):
    shutil.copytree(store, tmp_path / "store")
    return tmp_path / "store"


def test_runs_are_found_at_any_depth_and_none_twice(store):
    found = collect([store, store / "two", store / "one" / "quick"])
    assert [path.path.relative_to(store).parts[0] for path in found.runs] == ["one", "two", "two"]
    assert {each.result["config"]["model"]["mode"]["type"] for each in found.runs} == {"fa", "dfa", "usf"}
    assert (found.unfinished, found.problems, found.studies) == ([], [], [])


def test_what_has_begun_is_named_and_not_shown(stored):
    (stored / "one" / "quick" / "results.json").unlink()
    found = collect(stored)
    assert found.unfinished == [stored / "one" / "quick"]
    assert len(found.runs) == 2


@pytest.mark.parametrize("text", ["{", "", "[1]", "{}", "\x00"])
def test_a_damaged_file_is_told_and_the_others_are_shown(stored, text):
    (stored / "one" / "quick" / "results.json").write_text(text)
    found = collect(stored)
    assert len(found.runs) == 2
    [problem] = found.problems
    assert str(stored / "one" / "quick" / "results.json") in problem
    assert "damaged" in problem or "another version" in problem


def test_a_result_of_another_version_is_told_with_that_version(stored):
    path = stored / "one" / "quick" / "results.json"
    result = json.loads(path.read_text())
    del result["state_hash"], result["history"], result["digest"]
    result["environment"]["biotorch"] = "0.0.7"
    path.write_text(json.dumps(result))
    [problem] = collect(stored).problems
    assert "another version of biotorch (0.0.7)" in problem
    assert "lacks history, state_hash" in problem
    assert "--overwrite" in problem


def test_a_half_written_file_of_a_killed_process_is_no_result(stored):
    (stored / "one" / "quick" / ".results.json.77.unfinished").write_text("{")
    assert len(collect(stored).runs) == 3


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """A small run with a study of its robustness."""
    folder = tmp_path_factory.mktemp("studied")
    finish(folder, *TINY)
    attack_run(folder / "quick", ATTACKS)
    return folder


@pytest.fixture
def study_copy(studied, tmp_path):
    shutil.copytree(studied, tmp_path / "studied")
    return tmp_path / "studied"


@pytest.mark.parametrize("text", ['{"config": {}}', "", "[]", "[" * 100_000])
def test_a_damaged_study_is_told_and_its_run_is_shown(study_copy, text):
    (study_copy / "quick" / STUDY).write_text(text)
    found = collect(study_copy)
    assert [run.study for run in found.runs] == [None]
    [problem] = found.problems
    assert "study.json is damaged" in problem
    assert "biotorch attack" in problem


def flipped(path, count):
    """Flip some bits of a file, one after the other, and all bits of the name of its digest; yield after each."""
    whole, random = path.read_bytes(), Random(0)
    at = whole.rfind(b'"digest"') * 8
    for place in (*(random.randrange(8 * len(whole)) for _ in range(count)), *(range(at, at + 64) if at >= 0 else ())):
        bits = bytearray(whole)
        bits[place // 8] ^= 1 << place % 8
        path.write_bytes(bits)
        yield whole[max(0, place // 8 - 20) : place // 8 + 5]
    path.write_bytes(whole)


@pytest.mark.parametrize("name", [Path("results.json"), STUDY], ids=str)
@pytest.mark.parametrize("count", [200, pytest.param(20_000, marks=pytest.mark.slow)])
def test_no_bit_of_a_file_changes_a_figure(study_copy, name, count):
    path = study_copy / "quick" / name
    [good] = collect(study_copy).runs
    outcomes = Counter()
    for place in flipped(path, count):
        found = collect(study_copy)
        if found.problems:
            [problem] = found.problems
            assert str(path) in problem
            assert "damaged" in problem
            outcomes["left out"] += 1
        else:
            [run] = found.runs
            for part, whole in ((run.result, good.result), (run.study, good.study)):
                assert {key: part[key] for key in whole if key != "digest"} == without_digest(whole), place
            outcomes["unchecked" if not {"digest"} <= run.result.keys() & run.study.keys() else "same"] += 1
    assert outcomes["left out"] > 0.9 * count
    assert outcomes["unchecked"] > 8  # the name of the digest is another one


def without_digest(content):
    return {key: value for key, value in content.items() if key != "digest"}


@pytest.mark.parametrize("name", [Path("results.json"), STUDY], ids=str)
@pytest.mark.parametrize("count", [15, pytest.param(3000, marks=pytest.mark.slow)])
def test_what_has_no_checksum_is_shown_and_marked_and_its_damage_is_no_traceback(study_copy, name, count):
    path = study_copy / "quick" / name
    path.write_text(json.dumps(without_digest(json.loads(path.read_text()))))
    found = collect(study_copy)
    notes = (robustness_table(found.studies) if name == STUDY else table(found.results)).notes
    assert "1 of 1 files are of an earlier version, without checksum." in notes
    assert list(biotorch.results.load(study_copy)["checksum"]) == [name == STUDY]
    for _ in flipped(path, count):
        found = collect(study_copy)
        if found.runs:  # nothing of it raises
            of_collection(found)
            content(found)
            figures(found)


def test_a_damaged_result_is_told_by_the_next_run(study_copy):
    path = study_copy / "quick" / "results.json"
    path.write_text(path.read_text().replace('"error": ', '"error": 1', 1))
    with pytest.raises(DamagedResultError, match=r"results\.json is damaged .*delete it to run this point again"):
        finish(study_copy, *TINY)
    path.unlink()
    assert finish(study_copy, *TINY)["test"] == collect(study_copy).results[0]["test"]


def change(path, **values):
    """Change a file and give it the right digest."""
    write_json(path, without_digest(json.loads(path.read_text())) | values)


def test_a_study_is_left_out_if_it_is_of_another_network_or_data(study_copy):
    file, results = study_copy / "quick" / STUDY, study_copy / "quick" / "results.json"
    study, result = (json.loads(path.read_text()) for path in (file, results))
    assert study["state_hash"] == result["best_state_hash"]
    other = copy.deepcopy(study["config"])
    other["model"]["mode"]["type"] = "dfa"
    elsewhere, fewer = copy.deepcopy(study["config"]), copy.deepcopy(study["config"])
    elsewhere["data"]["dataset"] = "mnist"
    fewer["data"]["validation_size"] = 7
    cases = [
        ({"state_hash": "0" * 32}, {}, "of another network than the run's (its weights have other values)"),
        ({"config": elsewhere}, {}, "was measured on other data than the run's (data.dataset: 'digits' in the run"),
        ({"config": fewer, "state_hash": "0"}, {}, "of another network than the run's (data.validation_size: "),
        ({"config": other}, {}, "model.mode.type: 'fa' in the run, 'dfa' in the study"),
        (
            {"data": {"digest": "a"}},
            {"data": {"digest": "b"}},
            "was measured on other data than the run's (its files differ)",
        ),
        ({"twin": str(study_copy / "quick"), "twin_state_hash": "0"}, {}, "from a twin that is another network now"),
    ]
    for of_study, of_result, reason in cases:
        change(file, **study | of_study)
        change(results, **result | of_result)
        found = collect(study_copy)
        assert found.studies == []
        [problem] = found.problems
        assert reason in problem
        assert f"`biotorch attack {study_copy / 'quick'}`" in problem
    change(results, **result)
    change(file, **study | {"config": fewer})  # of the same test images
    assert [len(found) for found in (collect(study_copy).studies, collect(study_copy).problems)] == [1, 0]
    change(results, **result | {"best_state_hash": None, "data": {}})  # as of an earlier version, which tells less
    change(file, **study | {"data": {"digest": "a"}, "twin": "nowhere", "twin_state_hash": "0"})
    assert [len(found) for found in (collect(study_copy).studies, collect(study_copy).problems)] == [1, 0]


def test_overwriting_forgets_the_robustness_of_the_old_network_and_no_file_of_others(study_copy):
    folder = study_copy / "quick"
    for path in ("robustness.md", "white_box.png", "attacks/my notes.json", "attacks/mine.txt"):
        (folder / path).write_text("x")
    finish(study_copy, *TINY, "model.mode.type=dfa", overwrite=True)
    assert sorted(path.name for path in (folder / "attacks").iterdir()) == ["mine.txt", "my notes.json"]
    assert not list(folder.glob("*robustness*"))
    frame = biotorch.results.load(study_copy)
    assert list(frame["rule"]) == ["dfa"]
    assert list(frame["verdict"]) == [None]


def test_a_folder_that_is_not_there_or_empty_is_a_clear_mistake(store, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*Did you mean"):
        collect(store.parent / (store.name[:-1] + "f"))
    with pytest.raises(FileNotFoundError, match="no runs in"):
        collect(tmp_path)
