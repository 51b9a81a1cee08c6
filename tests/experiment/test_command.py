"""The command on a study: what `--overwrite` deletes, for whom, and how it continues after an interruption."""

import os
import shutil
import signal

import pytest
import runs

from biotorch.errors import Interrupted
from biotorch.experiment import ConfigError, Display, LockedError, OtherRunError, RunFolder, run
from biotorch.experiment.command import states

SHORT = "data.validation_size=1200"
SEEDS = "sweep={experiment.seed: [0, 1]}"


class StopIn(Display):
    """Ctrl-C in the first epoch of a point."""

    def __init__(self, name):
        self.names, self.at = [], name

    def start(self, name, config):
        self.names.append(name)

    def epoch(self, record):
        if record["epoch"] == 1 and self.names[-1] == self.at:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("overrides", [(), (SEEDS,)])
def test_an_interrupted_overwriting_command_is_continued_by_the_next_one(same, overrides, tmp_path):
    run(runs.quick(tmp_path, SHORT, *overrides))
    study = runs.quick(tmp_path, SHORT, *overrides, "model.mode.type=dfa", "training.hyperparameters.epochs=2")
    names = list(study.points)
    with pytest.raises(Interrupted):
        run(study, overwrite=True, display=StopIn(names[len(names) // 2]))
    begun = StopIn(None)
    results = run(study, overwrite=same, display=begun)
    assert begun.names == names[len(names) // 2 :]  # the one that was stopped, and those that had not begun
    whole = run(
        runs.quick(tmp_path / "whole", SHORT, *overrides, "model.mode.type=dfa", "training.hyperparameters.epochs=2")
    )
    assert {name: each["state_hash"] for name, each in results.items()} == {
        name: each["state_hash"] for name, each in whole.items()
    }
    assert not marks(tmp_path)
    again = StopIn(None)
    run(study, overwrite=True, display=again)
    assert again.names == names


def marks(folder):
    return [*folder.rglob(".overwrite"), *folder.rglob(".discard")]


class StopAtOnce(Display):
    """Ctrl-C before the first point has begun."""

    def start(self, name, config):
        raise Interrupted(signal.SIGINT)


@pytest.mark.parametrize("overrides", [(), (SEEDS,)])
def test_marks_of_an_interrupted_command_count_for_that_command_alone(overrides, tmp_path):
    earlier, other, third = (
        runs.quick(tmp_path, SHORT, *overrides, f"model.mode.type={rule}") for rule in ("fa", "dfa", "usf")
    )
    first = run(earlier)
    with pytest.raises(Interrupted):
        run(other, overwrite=True, display=StopAtOnce())
    before = runs.files(tmp_path)
    with pytest.raises(OtherRunError):
        run(third)
    with RunFolder(earlier.folder / list(earlier.points)[-1]).locked(), pytest.raises(LockedError):
        run(third, overwrite=True)
    assert run(earlier) == first
    assert runs.files(tmp_path) == before
    assert set(states(earlier, False).values()) == {"finished"}
    assert set(states(other, False).values()) == {"to run anew, deletes the finished run"}
    assert {each["config"]["model"]["mode"]["type"] for each in run(other).values()} == {"dfa"}
    assert not marks(tmp_path)


def test_a_command_that_overwrites_a_part_of_the_points_ends_the_interrupted_one(tmp_path):
    study = runs.quick(tmp_path, SHORT, SEEDS)
    first = run(study)
    with pytest.raises(Interrupted):
        run(study, overwrite=True, display=StopAtOnce())
    run(runs.quick(tmp_path, SHORT, SEEDS, "sweep.experiment.seed=[0]"), overwrite=True)
    assert not marks(tmp_path)
    again = run(study, display=(calls := runs.Calls()))
    assert calls.names == []
    assert again["seed=1"] == first["seed=1"]


@pytest.mark.parametrize("overrides", [(), (SEEDS,)])
def test_a_second_command_takes_nothing_from_one_that_overwrites(overrides, tmp_path):
    old = run(runs.quick(tmp_path, SHORT, *overrides))
    study = runs.quick(tmp_path, SHORT, *overrides, "training.hyperparameters.epochs=2")
    part = runs.quick(tmp_path, SHORT, *overrides, "sweep.experiment.seed=[1]") if overrides else None

    class Meanwhile(StopIn):
        def epoch(self, record):
            if record["epoch"] == 1:
                for overwrite in (True, False):
                    with pytest.raises(LockedError, match=r"another process is working on .*quick"):
                        run(study, overwrite)
                if part is not None:
                    assert run(part)["seed=1"] == old["seed=1"]
            super().epoch(record)

    with pytest.raises(Interrupted):
        run(study, overwrite=True, display=Meanwhile(next(iter(study.points))))
    run(study, overwrite=True, display=(calls := runs.Calls()))
    assert calls.epochs == [2, *([0, 1, 2] if overrides else [])]


SHOWN = ("table.md", "angles.png", "page.html", "robustness.md")


@pytest.mark.parametrize("overrides", [(), (SEEDS,)])
def test_tables_and_figures_go_with_the_runs_that_they_show(overrides, tmp_path):
    study = runs.quick(tmp_path, SHORT, *overrides)
    run(study)
    for name in (*SHOWN, "notes.txt"):
        (study.folder / name).write_text("")
    run(study)
    assert all((study.folder / name).is_file() for name in SHOWN)
    with pytest.raises(Interrupted):
        run(study, overwrite=True, display=StopIn(next(iter(study.points))))
    assert not [name for name in SHOWN if (study.folder / name).exists()]
    assert (study.folder / "notes.txt").is_file()


def test_the_folder_of_a_sweep_is_ours_without_its_points(tmp_path):
    study = runs.quick(tmp_path, SHORT, SEEDS)
    first = run(study)
    (study.folder / "table.md").write_text("")
    for name in study.points:
        shutil.rmtree(study.folder / name)
    assert {each["state_hash"] for each in run(study).values()} == {each["state_hash"] for each in first.values()}


def test_overwrite_forgets_nothing_before_the_new_run_is_known_to_fit(tmp_path):
    runs.finish(tmp_path, SHORT)
    before = runs.left_behind(tmp_path / "quick")
    with pytest.raises(ConfigError, match="does not take the examples"):
        runs.finish(tmp_path, SHORT, "model.architecture=resnet20", overwrite=True)
    assert runs.left_behind(tmp_path / "quick") == before
