"""Checkpoints on disk: whole or absent, damage is noticed, code is never run, and models come back."""

import contextlib
import os
import pickle
import shutil

import pytest
import runs
import torch
from networks import same, state
from torch import nn

import biotorch
from biotorch import _files, data
from biotorch.experiment import CheckpointError, checkpoints, measure, run
from biotorch.training import evaluate

RAN: list[str] = []


class Malicious:
    """A pickle that runs code when it is loaded."""

    def __reduce__(self):
        return RAN.append, ("code ran",)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    runs.finish(folder, "training.metrics.top_k=3", "training.hyperparameters.epochs=2")
    return folder / "quick"


@pytest.fixture
def unfinished(finished, tmp_path):
    """That run as if it had been killed after its last checkpoint, the one before being the network at the start."""
    shutil.copytree(finished, tmp_path / "quick")
    for name in ("results.json", "results.csv"):
        (tmp_path / "quick" / name).unlink()
    return tmp_path / "quick"


def again(folder, *overrides):
    return runs.finish(folder.parent, "training.metrics.top_k=3", "training.hyperparameters.epochs=2", *overrides)


# Writing -----------------------------------------------------------------------------------------


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file.pth"
    checkpoints.save(path, {"a": torch.zeros(3)})

    def half(file):
        file.write(b"half")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        _files.write(path, half, keep_previous=True)
    assert torch.equal(checkpoints.load(path)["a"], torch.zeros(3))
    for broken in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os if broken == "fsync" else type(path), broken, _fails)
            with pytest.raises(OSError, match="broken"):
                checkpoints.save(path, {"a": torch.ones(3)})
        assert torch.equal(checkpoints.load(path)["a"], torch.zeros(3))
    assert [each.name for each in tmp_path.iterdir()] == ["file.pth"]


def _fails(*args):
    raise OSError("broken")


def test_the_previous_checkpoint_stays_until_the_next_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "latest.pth"
    seen = []
    fsync = os.fsync

    def watched(descriptor):
        seen.append([checkpoints.load(each)["n"] for each in (path, _files.previous(path)) if each.exists()])
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    for number in range(4):
        checkpoints.save(path, {"n": number}, keep_previous=True)
    assert seen[0::2] == [[], [0], [1, 0], [2, 1]]
    assert seen[1::2] == [[0], [1, 0], [2, 1], [3, 2]]
    assert list(tmp_path.glob(".*")) == []


# Reading -----------------------------------------------------------------------------------------


def test_a_flipped_bit_is_told_or_changes_nothing(tmp_path):
    content = {"config": {"name": "x"}, "w": torch.arange(4.0)}
    path = tmp_path / "whole.pth"
    checkpoints.save(path, content)
    whole, bent = path.read_bytes(), tmp_path / "bent.pth"
    told, problems = 0, []
    for place in range(len(whole)):
        for bit in {1, 1 << place % 8}:
            bent.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            try:
                if repr(checkpoints.load(bent)) != repr(content):
                    problems.append((place, bit, "unnoticed"))
            except CheckpointError:
                told += 1
            except Exception as error:  # noqa: BLE001 - every one of them is a defect
                problems.append((place, bit, type(error).__name__))
    assert told > 500
    assert not problems, f"{len(problems)} of {2 * len(whole)}, such as {problems[:: len(problems) // 10 + 1]}"


DAMAGE = {
    "truncated": lambda whole: whole[: len(whole) // 2],
    "one byte short": lambda whole: whole[:-1],
    "a bit flipped": lambda whole: whole[:-5000] + bytes([whole[-5000] ^ 1]) + whole[-4999:],
    "empty": lambda whole: b"",
    "zeros": lambda whole: bytes(len(whole)),
    "something else": lambda whole: b"hello",
}  # fmt: skip
every_damage = pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())


@every_damage
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(damage, finished, unfinished):
    latest = unfinished / "latest_model.pth"
    whole = latest.read_bytes()
    latest.with_name("previous_latest_model.pth").write_bytes(whole)
    latest.write_bytes(damage(whole))
    with pytest.raises(CheckpointError, match=r"latest_model\.pth"):
        biotorch.load(unfinished, "latest")
    with pytest.warns(UserWarning, match=r"[^_]latest_model\.pth.* Using the previous checkpoint"):
        result = again(unfinished)
    # Nothing was left to train, so that times and all are those of the checkpoint.
    assert result["history"] == runs.json.loads((finished / "results.json").read_text())["history"]
    assert runs.left_behind(unfinished) == runs.left_behind(finished)


@every_damage
def test_where_both_are_damaged_the_run_starts_again(damage, finished, unfinished):
    for name in ("latest_model.pth", "previous_latest_model.pth"):
        (unfinished / name).write_bytes(damage((finished / "latest_model.pth").read_bytes()))
    before = pytest.warns(UserWarning, match="Using the previous checkpoint")
    with before, pytest.warns(UserWarning, match="Starting again") as caught:
        again(unfinished)
    told = [str(warning.message) for warning in caught if "damaged" in str(warning.message)]
    assert len(told) == 2
    assert told[1].endswith("Starting again.")
    assert {**runs.left_behind(unfinished)} == runs.left_behind(finished)


def test_a_kill_while_a_damaged_checkpoint_is_replaced_leaves_a_good_one(tmp_path, monkeypatch):
    """The one before must not be overwritten by the damaged one."""
    path = tmp_path / "latest.pth"
    checkpoints.save(path, {"n": 0}, keep_previous=True)
    checkpoints.save(path, {"n": 1}, keep_previous=True)
    path.write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="Using the previous checkpoint"):
        assert checkpoints.load(checkpoints.newest(path))["n"] == 0
    replace, calls = type(path).replace, []

    def killed(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return replace(source, target)

    monkeypatch.setattr(type(path), "replace", killed)
    with contextlib.suppress(KeyboardInterrupt):
        checkpoints.save(path, {"n": 2}, keep_previous=True)
        checkpoints.save(path, {"n": 3}, keep_previous=True)
    monkeypatch.undo()
    assert calls
    assert checkpoints.load(checkpoints.newest(path))["n"] == 2


def test_all_files_load_without_running_code(finished):
    for path in finished.glob("*.pth"):
        content = torch.load(path, weights_only=True)
        assert content["config"]["experiment"]["name"] == "quick"
        assert content["num_classes"] == 10
    assert {path.name for path in finished.glob("*.pth")} == {"latest_model.pth", "model_best_acc.pth"}


@pytest.mark.parametrize("kind", ["module", "malicious zip", "malicious pickle", "malicious inside a state"])
def test_code_is_refused_and_does_not_run(kind, unfinished, tmp_path):
    RAN.clear()
    path = tmp_path / "given.pth"
    if kind == "module":
        torch.save(nn.Linear(2, 2), path)
    elif kind == "malicious zip":
        torch.save(Malicious(), path)
    elif kind == "malicious pickle":
        path.write_bytes(pickle.dumps(Malicious()))
    else:
        torch.save({**torch.load(unfinished / "latest_model.pth"), "extra": Malicious()}, path)
    with pytest.raises(CheckpointError, match=r"given\.pth is (refused|damaged, is not a checkpoint)"):
        biotorch.load(path)
    with pytest.raises(CheckpointError, match=r"given\.pth"):
        run(runs.quick(tmp_path / "other", f"model.checkpoint={path}"))
    for name in ("latest_model.pth", "model_best_acc.pth", "previous_latest_model.pth"):
        shutil.copy(path, unfinished / name)
    with pytest.raises(CheckpointError, match=r"model_best_acc\.pth"):
        biotorch.load(unfinished)
    before = pytest.warns(UserWarning, match="Using the previous checkpoint")
    with before, pytest.warns(UserWarning, match="Starting again"):
        again(unfinished)
    assert RAN == []


# Loading -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["dfa", "brsf"])
def test_a_loaded_run_is_the_network_that_was_measured(rule, tmp_path):
    # A rate at which the last epoch is not the best.
    overrides = [
        f"model.mode.type={rule}",
        "training.hyperparameters.epochs=4",
        "training.optimizer={type: Adam, lr: 0.0002}",
    ]
    result = runs.finish(tmp_path, *overrides, "training.lr_scheduler={type: StepLR, step_size: 3, gamma: 1000}")
    config = data.DataConfig(dataset="digits", target_size=32)
    splits = data.load(config, result["config"]["experiment"]["seed"])
    best, latest = (biotorch.load(tmp_path / "quick", which) for which in ("best", "latest"))
    assert not best.training
    epoch = result["best_epoch"]
    assert epoch < 4
    for model, record in ((best, result["history"][epoch]), (latest, result["history"][4])):
        assert evaluate(model, splits.validation, nn.functional.cross_entropy) == pytest.approx(record["validation"])
    assert evaluate(best, splits.test, nn.functional.cross_entropy) == pytest.approx(result["test"])
    assert same(state(latest), runs.weights(tmp_path / "quick" / "latest_model.pth"))
    assert best.features[0].rule.name == rule


def test_a_file_of_a_run_loads_like_its_folder(finished):
    assert same(state(biotorch.load(finished)), state(biotorch.load(str(finished / "model_best_acc.pth"))))
    assert same(state(biotorch.load(finished, "latest")), state(biotorch.load(finished / "latest_model.pth")))


def test_what_cannot_be_loaded_is_told(tmp_path, finished):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        biotorch.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="not a run, or it has not begun"):
        biotorch.load(tmp_path)
    torch.save(biotorch.load(finished).state_dict(), tmp_path / "plain.pth")
    with pytest.raises(CheckpointError, match="not written by a run"):
        biotorch.load(tmp_path / "plain.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds a list"):
        biotorch.load(tmp_path / "list.pth")


# Of another run ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The same run under another rule."""
    folder = tmp_path_factory.mktemp("other")
    runs.finish(folder, "training.metrics.top_k=3", "training.hyperparameters.epochs=2", "model.mode.type=dfa")
    return folder / "quick"


FOREIGN = r"{} is of another run \(model\.mode\.type: 'fa' in the folder, 'dfa' in the checkpoint\)"


def test_a_checkpoint_of_another_run_is_refused_whatever_it_is_read_for(finished, other, tmp_path):
    folder = tmp_path / "quick"
    shutil.copytree(finished, folder)
    for name in ("model_best_acc.pth", "latest_model.pth"):
        shutil.copy(other / name, folder / name)
    for read in (
        lambda: biotorch.load(folder),
        lambda: biotorch.load(folder / "model_best_acc.pth"),
        lambda: measure.evaluate_run(folder),
        lambda: measure.attack_run(folder),
        lambda: again(tmp_path / "from" / "quick", f"model.checkpoint={folder}"),
    ):
        with pytest.raises(CheckpointError, match=FOREIGN.format(r".*model_best_acc\.pth")):
            read()
    latest = FOREIGN.format(r".*latest_model\.pth")
    with pytest.raises(CheckpointError, match=latest):
        measure.evaluate_run(folder, which="latest")
    for name in ("results.json", "results.csv"):
        (folder / name).unlink()
    with pytest.raises(CheckpointError, match=latest):
        again(folder)
    shutil.copy(folder / "model_best_acc.pth", tmp_path / "elsewhere.pth")
    biotorch.load(tmp_path / "elsewhere.pth")  # in no run's folder


def test_a_checkpoint_of_the_same_configuration_with_other_weights_is_refused(finished, tmp_path):
    folder = tmp_path / "quick"
    shutil.copytree(finished, folder)
    for name, which in (("model_best_acc.pth", "best"), ("latest_model.pth", "latest")):
        biotorch.load(folder, which)
        content = torch.load(folder / name, weights_only=True)
        next(iter(content["model"].values())).view(-1)[0] += 1
        torch.save(content, folder / name)
        with pytest.raises(CheckpointError, match=rf"{name} is not the network of the results beside it"):
            biotorch.load(folder, which)
