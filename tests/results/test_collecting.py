"""What is below a folder of results: finished, unfinished, damaged, of another version."""

from __future__ import annotations

import json
import shutil

import pytest
from runs import finish, quick

from biotorch.experiment import run
from biotorch.results.collecting import collect


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A run by itself, and a sweep of two."""
    folder = tmp_path_factory.mktemp("store")
    finish(folder / "one")
    run(quick(folder / "two", "sweep={model.mode.type: [dfa, usf]}"))
    return folder


@pytest.fixture
def copy(store, tmp_path):
    shutil.copytree(store, tmp_path / "store")
    return tmp_path / "store"


def test_runs_are_found_at_any_depth_and_none_twice(store):
    found = collect([store, store / "two", store / "one" / "quick"])
    assert [path.path.relative_to(store).parts[0] for path in found.runs] == ["one", "two", "two"]
    assert {each.result["config"]["model"]["mode"]["type"] for each in found.runs} == {"fa", "dfa", "usf"}
    assert (found.unfinished, found.problems, found.studies) == ([], [], [])


def test_what_has_begun_is_named_and_not_shown(copy):
    (copy / "one" / "quick" / "results.json").unlink()
    found = collect(copy)
    assert found.unfinished == [copy / "one" / "quick"]
    assert len(found.runs) == 2


@pytest.mark.parametrize("text", ["{", "", "[1]", "{}", "\x00"])
def test_a_damaged_file_is_told_and_the_others_are_shown(copy, text):
    (copy / "one" / "quick" / "results.json").write_text(text)
    found = collect(copy)
    assert len(found.runs) == 2
    [problem] = found.problems
    assert str(copy / "one" / "quick" / "results.json") in problem
    assert "damaged" in problem or "another version" in problem


def test_a_result_of_another_version_is_told_with_that_version(copy):
    path = copy / "one" / "quick" / "results.json"
    result = json.loads(path.read_text())
    del result["state_hash"], result["history"]
    result["environment"]["biotorch"] = "0.0.7"
    path.write_text(json.dumps(result))
    [problem] = collect(copy).problems
    assert "another version of biotorch (0.0.7)" in problem
    assert "history, state_hash" in problem
    assert "--overwrite" in problem


def test_a_half_written_file_of_a_killed_process_is_no_result(copy):
    (copy / "one" / "quick" / ".results.json.77.unfinished").write_text("{")
    assert len(collect(copy).runs) == 3


def test_a_damaged_study_is_told_and_its_run_is_shown(copy):
    folder = copy / "one" / "quick" / "attacks"
    folder.mkdir()
    (folder / "study.json").write_text('{"config": {}}')
    found = collect(copy)
    assert len(found.runs) == 3
    [problem] = found.problems
    assert "study.json is damaged" in problem
    assert "biotorch attack" in problem


def test_a_folder_that_is_not_there_or_empty_is_a_clear_mistake(store, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*Did you mean"):
        collect(store.parent / (store.name[:-1] + "f"))
    with pytest.raises(FileNotFoundError, match="no runs in"):
        collect(tmp_path)
