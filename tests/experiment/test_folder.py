"""One folder, one run: finished ones are skipped, others refused, and only one process works on it."""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest
import runs
import torch
import yaml
from commands import invoke

from biotorch.errors import LostFolderError, kind_of
from biotorch.experiment import (
    BrokenPointsError,
    ConfigError,
    DamagedResultError,
    Display,
    LockedError,
    OtherRunError,
    load_results,
    run,
)
from biotorch.experiment.measure import attack_run

SHORT = "data.validation_size=1200"


class StopAt(Display):
    """As if the process had died right after this epoch."""

    def __init__(self, epoch):
        self.at = epoch

    def epoch(self, record):
        if record["epoch"] == self.at:
            raise ZeroDivisionError


def stopped(folder, *overrides):
    """A run of 3 epochs that ended in the second one, with a checkpoint after every update."""
    overrides = ("training.hyperparameters.epochs=3", "infrastructure.checkpoint_seconds=0", *overrides)
    with pytest.raises(ZeroDivisionError):
        run(runs.quick(folder, *overrides), display=StopAt(2))


def test_finished_points_are_not_run_again_and_others_are_not_overwritten(tmp_path):
    sweep = (SHORT, "sweep={experiment.seed: [0, 1]}")
    calls = runs.Calls()
    first = run(runs.quick(tmp_path, *sweep), display=calls)
    assert calls.names == ["seed=0", "seed=1"]
    assert run(runs.quick(tmp_path, *sweep), display=(again := runs.Calls())) == first
    assert again.names == []
    changed = runs.quick(tmp_path, *sweep, "training.optimizer.lr=0.02")
    with pytest.raises(OtherRunError, match="another configuration") as caught:
        run(changed)
    assert "training.optimizer.lr: 0.01 in the folder, 0.02 asked for" in str(caught.value)
    assert load_results(tmp_path / "quick" / "seed=0") == first["seed=0"]
    assert run(changed, overwrite=True)["seed=0"]["state_hash"] != first["seed=0"]["state_hash"]


@pytest.mark.parametrize("jobs", [(), ("--jobs", "2")], ids=["here", "elsewhere"])
def test_a_run_says_where_it_continues(tmp_path, jobs):
    changes = ("training.hyperparameters.epochs=3", "infrastructure.checkpoint_seconds=0", SHORT)
    changes += ("sweep={experiment.seed: [0, 1]}",)
    with pytest.raises(BrokenPointsError):
        run(runs.quick(tmp_path, *changes), display=StopAt(2))
    result = invoke("run", tmp_path / "quick.yaml", *changes, *jobs)
    assert result.exit_code == 0, result.output
    for number in (0, 1):
        said = [line for line in result.stdout.splitlines() if line.startswith(f"[{number + 1}/2] seed={number} ")]
        assert re.match(r"\[\d/2\] seed=\d continues from epoch 2, after update \d+$", said[0])
    assert " starts" not in result.stdout


def test_all_differences_are_listed(tmp_path):
    stopped(tmp_path)
    changed = ["model.mode={type: dfa, options: {shortcuts: cut}}", "training.warmup_epochs=1", "experiment.seed=5"]
    with pytest.raises(OtherRunError) as caught:
        runs.finish(tmp_path, "training.hyperparameters.epochs=3", *changed)
    for part in (
        "model.mode.type: 'fa' in the folder, 'dfa' asked for",
        "options",
        "warmup_epochs: 0 in the folder, 1 asked for",
        "seed: 3 in the folder",
    ):
        assert part in str(caught.value)
    assert "checkpoint_seconds" not in str(caught.value)


def test_what_changes_no_figure_may_change(tmp_path):
    stopped(tmp_path)
    folder = tmp_path / "moved"
    (tmp_path / "quick").rename(tmp_path / "elsewhere")
    folder.mkdir()
    (tmp_path / "elsewhere").rename(folder / "renamed")
    changed = (
        "experiment.name=renamed", "logging.tensorboard=false", "infrastructure.checkpoint_seconds=7",
        "data.num_workers=2", "training.metrics.display_iterations=5", "training.hyperparameters.epochs=3",
    )  # fmt: skip
    result = run(runs.quick(folder, *changed), display=(calls := runs.Calls()))[""]
    assert calls.epochs == [2, 3]
    whole = runs.finish(tmp_path / "whole", "training.hyperparameters.epochs=3")
    assert result["state_hash"] == whole["state_hash"]
    assert run(runs.quick(folder, *changed, "data.num_workers=0"), display=(calls := runs.Calls()))[""] == result
    assert calls.names == []


def test_overwrite_begins_anew(tmp_path):
    stopped(tmp_path)
    calls = runs.Calls()
    result = run(runs.quick(tmp_path, SHORT, "model.mode.type=dfa"), overwrite=True, display=calls)[""]
    assert calls.epochs == [0, 1]
    assert len(runs.records(tmp_path / "quick")) == 2
    assert [step for step, _ in runs.curves(tmp_path / "quick")["error/validation"]] == [0, 1]
    assert result["config"]["model"]["mode"]["type"] == "dfa"
    assert runs.stray(tmp_path / "quick") == set()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("config", [None, "", "{", "[1]"])
def test_without_its_configuration_a_checkpoint_is_not_taken_for_that_of_another_run(config, overwrite, tmp_path):
    stopped(tmp_path)
    file = tmp_path / "quick" / "config.yaml"
    file.unlink()
    if config is not None:
        file.write_text(config)
    overrides = ("training.optimizer.lr=0.02", "training.hyperparameters.epochs=3")
    if overwrite:
        hashed = runs.finish(tmp_path, *overrides, overwrite=True)["state_hash"]
        assert hashed == runs.finish(tmp_path / "whole", *overrides)["state_hash"]
    else:  # a message, as of every other mistake
        with pytest.raises(Exception, match="quick") as caught:
            runs.finish(tmp_path, *overrides)
        assert kind_of(caught.value) == "mistake"


def test_a_damaged_result_is_named(tmp_path):
    runs.finish(tmp_path, SHORT)
    path = tmp_path / "quick" / "results.json"
    whole = path.read_text()
    for damage in (whole[:100], "", "[]", "{}"):
        path.write_text(damage)
        with pytest.raises(DamagedResultError, match=r"results\.json is damaged"):
            runs.finish(tmp_path, SHORT)
    odd = {"data": [1], "data.files.a": 3, "data.train": "9", "test": {}, "test.error": "9", "validation.loss": [],
           "history.0.train": 2,
           "config.model.arguments": None, "config.model.train_only": 1,
           "config.model.mode.layers": {"fc": 1}}  # fmt: skip
    for place, value in odd.items():  # of an older version, or of somebody else
        content = {key: part for key, part in json.loads(whole).items() if key != "digest"}
        *above, last = (int(key) if key.isdigit() else key for key in place.split("."))
        functools.reduce(lambda part, key: part[key], above, content)[last] = value
        path.write_text(json.dumps(content))
        with pytest.raises(DamagedResultError, match=re.escape(f"it lacks {place}")):
            load_results(path.parent)
    path.unlink()
    assert runs.finish(tmp_path, SHORT)["state_hash"] == json.loads(whole)["state_hash"]
    path.write_text(json.dumps({key: part for key, part in json.loads(whole).items() if key not in ("digest", "data")}))
    assert runs.finish(tmp_path, SHORT)["state_hash"] == json.loads(whole)["state_hash"]


# Files of others ---------------------------------------------------------------------------------

SEEDS = "sweep={experiment.seed: [0, 1]}"


@pytest.mark.parametrize("overrides", [(), (SEEDS,)])
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["metrics.jsonl", "logs/mine.txt", "config.yaml", "table.md"])
def test_a_folder_of_others_is_refused_before_anything_is_written(name, overwrite, overrides, tmp_path):
    path = tmp_path / "quick" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    study = runs.quick(tmp_path, SHORT, *overrides)
    before = runs.files(tmp_path)
    with pytest.raises(OtherRunError, match=r"quick is not empty.*choose another"):
        run(study, overwrite)
    assert runs.files(tmp_path) == before


def test_attacks_do_not_write_among_files_of_others(tmp_path):
    runs.finish(tmp_path, SHORT)
    (tmp_path / "quick" / "attacks").mkdir()
    (tmp_path / "quick" / "attacks" / "study.json").write_text("{}")
    before = runs.files(tmp_path)
    with pytest.raises(OtherRunError, match="attacks is not empty"):
        attack_run(tmp_path / "quick", [("attacks.images", 5)])
    assert runs.files(tmp_path) == before


def test_a_point_among_files_of_others_breaks_alone(tmp_path):
    (tmp_path / "quick" / "seed=0").mkdir(parents=True)
    run(runs.quick(tmp_path, SHORT, SEEDS, "sweep.experiment.seed=[1]"))
    (tmp_path / "quick" / "seed=0" / "notes.txt").write_text("mine")
    with pytest.raises(Exception, match=r"seed=0: .*is not empty") as caught:
        run(runs.quick(tmp_path, SHORT, SEEDS))
    assert list(caught.value.results) == ["seed=1"]
    assert os.listdir(tmp_path / "quick" / "seed=0") == ["notes.txt"]  # and no error.txt


def test_a_name_belongs_to_a_run_or_to_a_sweep(tmp_path):
    with pytest.raises(ConfigError, match="top_k"):
        runs.finish(tmp_path, SHORT, "training.metrics.top_k=99")
    assert os.listdir(tmp_path / "quick") == [".lock"]  # which does not keep others off
    run(runs.quick(tmp_path, SHORT, SEEDS))
    for overwrite in (False, True):
        with pytest.raises(OtherRunError, match="quick is the folder of a sweep"):
            runs.finish(tmp_path, SHORT, overwrite=overwrite)


@pytest.mark.parametrize(("first", "second"), [("exp/logs", "exp"), ("exp", "exp/logs"), ("exp", "exp/attacks")])
def test_a_run_is_neither_around_nor_inside_another(first, second, tmp_path):
    tensorboard = "logging.tensorboard=true"
    runs.finish(tmp_path, SHORT, f"experiment.name={first}", "logging.tensorboard=false")
    before = runs.left_behind(tmp_path / first)
    for overwrite in (False, True):
        with pytest.raises(OtherRunError, match=r"lie in the folder of the run|is not empty"):
            runs.finish(tmp_path, SHORT, f"experiment.name={second}", tensorboard, overwrite=overwrite)
    assert runs.left_behind(tmp_path / first) == before


def test_only_files_of_the_run_itself_are_removed(tmp_path):
    stopped(tmp_path, "logging.tensorboard=true")
    folder = tmp_path / "quick"
    (folder / ".wandb-run").write_text("abc")
    own = ["wandb/run-1-abc/files.txt"]
    mine = [
        "notes.txt",
        "logs/mine.txt",
        "logs/events.out.tfevents.1.host",
        "wandb/run-1-other/files.txt",
        ".x.unfinished",
    ]
    for name in own + mine:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    (folder / "wandb" / "latest-run").symlink_to("run-1-abc")
    runs.finish(tmp_path, SHORT, "logging.tensorboard=false", overwrite=True)
    assert not any((folder / name).exists() for name in own)
    assert not (folder / "wandb" / "latest-run").is_symlink()
    assert all((folder / name).is_file() for name in mine)
    assert len(list((folder / "logs").iterdir())) == 2


class Lose(Display):
    """Somebody deletes the folder, and perhaps starts another run in it."""

    def __init__(self, folder, again=None):
        self.folder, self.again, self.after = folder, again, None

    def epoch(self, record):
        if record["epoch"] == 1 and self.after is None:
            shutil.rmtree(self.folder)
            if self.again is not None:
                run(self.again)
            self.after = runs.files(self.folder)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("overrides", [("logging.tensorboard=true",), (SEEDS,)])
def test_a_run_whose_folder_is_deleted_or_replaced_writes_nothing_more(again, overrides, tmp_path):
    study = runs.quick(tmp_path, *overrides, "training.hyperparameters.epochs=2")
    lose = Lose(study.folder, study if again else None)
    with pytest.raises(LostFolderError, match=r"quick.* was deleted or replaced") as caught:
        run(study, display=lose)
    assert kind_of(caught.value) == "lost"
    assert runs.files(study.folder) == lose.after
    assert study.folder.exists() == again


def test_a_folder_that_is_being_deleted_is_told_although_the_lock_is_still_there(tmp_path):
    class Halfway(Display):
        def epoch(self, record):
            for path in (tmp_path / "quick").glob("*.*"):
                path.unlink()
            raise FileNotFoundError(2, "No such file", str(tmp_path / "quick" / "latest_model.pth"))

    with pytest.raises(LostFolderError, match="nothing more is written"):
        run(runs.quick(tmp_path, SHORT), display=Halfway())


def test_a_finished_run_without_its_network_is_told_as_such(tmp_path):
    runs.finish(tmp_path, SHORT)
    (tmp_path / "quick" / "model_best_acc.pth").unlink()
    for command in ("evaluate", "attack"):
        ended = invoke(command, tmp_path / "quick")
        assert ended.exit_code == 2
        assert "model_best_acc.pth; the run is finished" in " ".join(ended.output.split())


# Locking -----------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from biotorch.experiment import RunFolder
folder = RunFolder(Path(sys.argv[1]))
folder.lock()
print("locked", flush=True)
time.sleep(100)
"""


def test_a_second_process_is_told_at_once_and_a_dead_one_holds_nothing(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "quick")], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"locked\n"
        begin = time.monotonic()
        with pytest.raises(LockedError, match=r"another process is working on .*quick"):
            runs.finish(tmp_path, SHORT)
        with pytest.raises(LockedError):
            runs.finish(tmp_path, SHORT, overwrite=True)
        assert time.monotonic() - begin < 3
        assert not (tmp_path / "quick" / "config.yaml").exists()
    finally:
        other.kill()
        other.wait()
    assert runs.finish(tmp_path, SHORT)["test"]


def test_a_run_inside_a_run_of_the_same_folder_is_refused(tmp_path):
    told = []

    class Again(Display):
        def epoch(self, record):
            with pytest.raises(LockedError):
                run(runs.quick(tmp_path, SHORT))
            told.append(record["epoch"])

    run(runs.quick(tmp_path, SHORT), display=Again())
    assert told == [0, 1]


def test_the_lock_is_given_back_after_an_exception(tmp_path):
    stopped(tmp_path)
    assert runs.finish(tmp_path, "training.hyperparameters.epochs=3")["test"]


def test_a_resumed_run_keeps_the_threads_it_started_with(tmp_path):
    stopped(tmp_path)
    torch.set_num_threads(2)
    try:
        result = runs.finish(tmp_path, "training.hyperparameters.epochs=3", "infrastructure.threads=null")
    finally:
        torch.set_num_threads(1)
    assert result["config"]["infrastructure"]["threads"] == 1
    written = yaml.safe_load((tmp_path / "quick" / "config.yaml").read_text())
    assert written["infrastructure"]["threads"] == 1
