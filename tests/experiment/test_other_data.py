"""Data that change behind a run: no result or network of one data set is continued or shown as another's."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from data_cases import write_npz

from biotorch import data
from biotorch.errors import BrokenPointsError, ConfigError, Interrupted, OtherRunError
from biotorch.experiment import Display, read, run
from biotorch.experiment.measure import attack_run, evaluate_run
from biotorch.results.groups import by_configuration, label

OTHER_CLASSES = {"y_train": np.arange(40) % 3, "y_test": np.arange(10) % 3}
OTHER_SIZE = {f"x_{part}": np.zeros((count, 5, 5, 3), np.uint8) for part, count in (("train", 40), ("test", 10))}
OTHER_PIXELS = {"x_train": np.random.default_rng(9).integers(0, 256, (40, 8, 8, 3), np.uint8)}

pytestmark = pytest.mark.filterwarnings("ignore:.*training images, too")


def study(folder, *overrides, dataset="set.npz", **sections):
    tree = {
        "experiment": {"name": "run", "output_dir": str(folder)},
        "data": {"dataset": dataset, "dataset_path": str(folder / "data")},
        "model": {"architecture": "mlp", "arguments": {"depth": 1, "width": 4}, "mode": {"type": "fa"}},
        "training": {"hyperparameters": {"epochs": 2, "batch_size": 16}, "optimizer": {"type": "SGD", "lr": 0.01}},
        "infrastructure": {"threads": 1, "checkpoint_seconds": 0},
        **sections,
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(tree))
    return read(path, overrides)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    write_npz(tmp_path / "data" / "set.npz")
    return tmp_path


def change(folder, changed):
    write_npz(folder / "data" / "set.npz", **changed)


class StopAfterOneEpoch(Display):
    def epoch(self, record, name=None):
        if record["epoch"] == 1:
            raise Interrupted(2)


CHANGES = [
    (OTHER_PIXELS, r"run holds a run on other data .*\(set\.npz has other contents\)"),
    (OTHER_CLASSES, r"4 classes then, 3 classes now"),
    (OTHER_SIZE, r"shape \(3, 8, 8\) then, examples of shape \(3, 5, 5\) now"),
]


@pytest.mark.parametrize(("changed", "told"), CHANGES)
@pytest.mark.parametrize("old", [False, True])
def test_a_run_does_not_continue_on_other_data(folder, changed, told, old, monkeypatch):
    if old:  # a checkpoint from before there were digests
        monkeypatch.setattr("biotorch.data.loading.digests.whole", lambda files: None)
        monkeypatch.setattr("biotorch.data.sources.digests.of_files", lambda stamps: {})
    with pytest.raises(Interrupted):
        run(study(folder), display=StopAfterOneEpoch())
    monkeypatch.undo()
    change(folder, changed)
    if old and changed is OTHER_PIXELS:
        assert run(study(folder))[""]["test"] is not None
        return
    with pytest.raises(OtherRunError, match=told):
        run(study(folder))
    change(folder, {})
    assert len(run(study(folder))[""]["history"]) == 3  # the checkpoint is as it was
    change(folder, changed)
    assert run(study(folder), overwrite=True)[""]["data"]["classes"] == (3 if changed is OTHER_CLASSES else 4)


def test_a_finished_run_is_not_shown_for_other_data(folder):
    first = run(study(folder))[""]
    (folder / "other").mkdir()
    shutil.copy(folder / "data" / "set.npz", folder / "other")
    elsewhere = f"data.dataset_path={folder / 'other'}"
    assert run(study(folder, elsewhere))[""] == first  # the same data in another place
    write_npz(folder / "other" / "set.npz", **OTHER_PIXELS)
    with pytest.raises(OtherRunError, match=r"set\.npz has other contents.*--overwrite"):
        run(study(folder, elsewhere))
    (folder / "other" / "set.npz").unlink()
    assert run(study(folder, elsewhere))[""] == first  # nothing to compare with
    results = folder / "run" / "results.json"
    old = json.loads(results.read_text())
    del old["data"]["files"], old["data"]["digest"], old["digest"]
    results.write_text(json.dumps(old))
    change(folder, OTHER_PIXELS)
    assert run(study(folder))[""] == old  # from before there were digests


def test_a_network_is_measured_on_other_data_only_if_they_are_named(folder):
    run(study(folder))
    path, named = folder / "run", [("data.dataset_path", str(folder / "data"))]
    few = [("attacks", {"images": 5, "epsilons": [0.1], "attacks": ["fgsm"]})]
    assert "trained_on" not in evaluate_run(path)
    assert "trained_on" not in evaluate_run(path, overrides=named)
    change(folder, OTHER_PIXELS)
    for measure in (lambda: evaluate_run(path), lambda: attack_run(path, few)):
        with pytest.raises(OtherRunError, match=r"set\.npz has other contents.*data\.dataset_path="):
            measure()
    told = "other data (set.npz has other contents)"
    assert evaluate_run(path, overrides=named)["trained_on"] == told
    written, _ = attack_run(path, [*few, *named])
    assert written["trained_on"] == told
    assert f"The network was trained on {told}." in (path / "attacks" / "study.md").read_text()
    change(folder, OTHER_CLASSES)
    with pytest.raises(ConfigError, match="was trained for 4 classes"):
        evaluate_run(path, overrides=named)


class ChangeAfterwards(Display):
    """Changes the data after the first point."""

    def __init__(self, folder):
        self.folder, self.told = folder, []

    def finished(self, name, result):
        change(self.folder, OTHER_PIXELS)

    def warn(self, message):
        self.told.append(message)


def test_points_of_a_sweep_on_different_data_are_told_and_not_averaged(folder):
    display = ChangeAfterwards(folder)
    found = run(study(folder, sweep={"experiment.seed": [0, 1]}), display=display)
    assert display.told == [
        "seed=0 and seed=1 were trained on different data (set.npz has other contents): do not compare them"
    ]
    groups = by_configuration(list(found.values()))
    assert [len(group) for group in groups] == [1, 1]
    digests = [result["data"]["digest"][:6] for result in found.values()]
    assert [label(group, groups) for group in groups] == [f"fa data={digest}" for digest in digests]
    old = {**found["seed=0"], "data": {}}
    assert [len(group) for group in by_configuration([old, *found.values()])] == [2, 1]


class Recorder(Display):
    def __init__(self):
        self.events = []

    def start(self, name, config):
        self.events.append(("start", name))

    def failed(self, names, message):
        self.events.append(("failed", *names, message.split(" is ")[0]))


def test_data_that_are_missing_are_told_once_before_the_first_point(folder):
    display = Recorder()
    sweep = {"data.dataset": ["imagenet", "digits"], "experiment.seed": [0, 1]}
    with pytest.raises(BrokenPointsError) as caught:
        run(study(folder, "data.validation_size=1400", sweep=sweep), display=display)
    assert display.events == [
        ("failed", "dataset=imagenet,seed=0", "dataset=imagenet,seed=1", "imagenet"),
        ("start", "dataset=digits,seed=0"),
        ("start", "dataset=digits,seed=1"),
    ]
    assert len(caught.value.results) == 2
    assert "imagenet is not in" in (folder / "run" / "dataset=imagenet,seed=1" / "error.txt").read_text()
    with pytest.raises(FileNotFoundError, match="imagenet is not in"):
        run(study(folder, "data.dataset=imagenet", "experiment.name=alone", sweep={"experiment.seed": [0, 1]}))
    assert [path.name for path in (folder / "alone").iterdir()] == [".study"]


def test_a_record_of_the_data_is_in_the_checkpoint_and_in_the_results(folder):
    result = run(study(folder))[""]
    expected = data.load(study(folder).config.data, 0).record
    assert result["data"] == expected
    for name in ("latest_model.pth", "model_best_acc.pth"):
        assert torch.load(folder / "run" / name, weights_only=True)["data"] == expected
