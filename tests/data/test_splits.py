"""Data sets: clean splits, what is read once and what again, configurations and their errors."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import platformdirs
import pytest
import torch
from data_cases import needs_data, write_npz
from pydantic import ValidationError

from biotorch import _seeding, data


def rows(split):
    return {bytes(image.flatten().tolist()) for image in split.images}


def digest(split):
    content = split.images.contiguous().numpy().tobytes() + split.labels.numpy().tobytes()
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def test_digits_are_complete_and_nothing_of_the_test_is_trained_on():
    loaded = data.load(data.DataConfig(dataset="digits"), seed=0)
    assert [len(split) for split in (loaded.train, loaded.validation, loaded.test)] == [1257, 180, 360]
    assert loaded.num_outputs == 10
    assert loaded.train.input_shape == (1, 8, 8)
    assert loaded.train.images.dtype == torch.uint8
    assert loaded.train.images.max() == 255
    assert loaded.train.skipped == []
    assert not rows(loaded.train) & rows(loaded.test)
    assert not rows(loaded.train) & rows(loaded.validation)


def test_the_test_set_is_the_same_for_every_seed_and_the_validation_set_is_not():
    first, second = (data.load(data.DataConfig(dataset="digits"), seed=seed) for seed in (0, 1))
    assert torch.equal(first.test.images, second.test.images)
    assert rows(first.validation) != rows(second.validation)
    assert first.record["held_out"] != second.record["held_out"]


@pytest.mark.parametrize(
    ("dataset", "size", "digests"),
    [
        ("digits", None, ["b06f75c1c99e7002", "eda03890af0f20d8", "85ba732737f7a21e"]),
        ("digits", 32, ["9c31675fcfa9702d", "c4dd803b766be26b", "15bb6ffb498eaf65"]),
        pytest.param("mnist", 32, ["afdec5b49de96e8e", "68eaafe04a8d2864", "59130c402b7709e3"], marks=needs_data),
    ],
)
def test_the_splits_of_published_results_do_not_move(dataset, size, digests):
    loaded = data.load(data.DataConfig(dataset=dataset, target_size=size), seed=3)
    assert [digest(split) for split in (loaded.train, loaded.validation, loaded.test)] == digests


def test_validation_on_the_test_set_trains_on_everything_else():
    loaded = data.load(data.DataConfig(dataset="digits", validation="test"), seed=0)
    assert [len(split) for split in (loaded.train, loaded.validation, loaded.test)] == [1437, 360, 360]
    assert loaded.validation is loaded.test
    assert not rows(loaded.train) & rows(loaded.test)
    assert loaded.record["validation_from"] == "test set"
    assert loaded.record["held_out"] is None
    moved = loaded.to(torch.device("cpu"))
    assert moved.validation is moved.test


DIGITS = "b2dab7b501728c22e9119ad76740b2e1"


def test_the_record_says_in_json_what_the_figures_were_measured_on():
    loaded = data.load(data.DataConfig(dataset="digits", validation_size=100, augment={"crop": 2}), seed=7)
    order = torch.randperm(1437, generator=_seeding.generator(_seeding.derive(7, "validation split")))
    held_out = np.sort(order[:100].numpy()).astype("<i8")
    assert json.loads(json.dumps(loaded.record)) == {
        "dataset": "digits",
        "train": 1337,
        "validation": 100,
        "test": 360,
        "validation_from": "training set",
        "split_seed": 7,
        "held_out": hashlib.blake2b(held_out.tobytes(), digest_size=16).hexdigest(),
        "augment": {"crop": 2, "flip": True},
        "classes": 10,
        "input_shape": [1, 8, 8],
        "repeated": None,
        "digest": DIGITS,
        "files": {"digits.npz": {"files": 1, "bytes": 45394, "contents": DIGITS}},
    }
    assert (loaded.mean, loaded.std) == ((0.305,), (0.376,))


def test_images_are_resized_once_to_the_target_size():
    split = data.load(data.DataConfig(dataset="digits", target_size=32), seed=0).train
    assert split.images.shape[1:] == (32, 32, 1)
    assert split.input_shape == (1, 32, 32)
    assert split.images.dtype == torch.uint8


def test_a_set_is_read_once_until_it_changes(tmp_path):
    config = data.DataConfig(dataset=write_npz(tmp_path / "set.npz"))
    first = data.load(config, seed=0)
    os.rename(tmp_path / "set.npz", tmp_path / "hidden.npz")
    os.link(tmp_path / "hidden.npz", tmp_path / "set.npz")
    with open(tmp_path / "set.npz", "r+b") as file:
        stat = os.fstat(file.fileno())
        file.write(b"garbage that a second reading would stumble over")
    os.utime(tmp_path / "set.npz", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again = data.load(config, seed=0)
    assert torch.equal(again.train.images, first.train.images)
    (tmp_path / "set.npz").unlink()
    write_npz(tmp_path / "set.npz", train=50)
    assert data.load(config, seed=0).record["train"] == 45


def test_what_is_done_to_a_split_does_not_reach_the_next_experiment(tmp_path):
    config = data.DataConfig(dataset=write_npz(tmp_path / "set.npz"), augment=True)
    first = data.load(config, seed=0)
    kept = digest(first.train)
    for images, labels in first.train.batches([torch.arange(36)], 1):
        images.zero_()
        labels.zero_()
    assert digest(data.load(config, seed=0).train) == kept


@pytest.mark.parametrize(
    ("dataset", "size", "expected"), [("digits", None, 180), ("digits", 7, 7), ("npz", None, 4), ("npz", 39, 39)]
)
def test_the_number_of_held_out_examples(tmp_path, dataset, size, expected):
    name = write_npz(tmp_path / "set.npz") if dataset == "npz" else dataset
    assert len(data.load(data.DataConfig(dataset=name, validation_size=size), seed=0).validation) == expected


@pytest.mark.parametrize("size", [1437, 5000])
def test_holding_everything_out_is_an_error(size):
    with pytest.raises(ValueError, match=rf"data\.validation_size {size}.*1437 training examples"):
        data.load(data.DataConfig(dataset="digits", validation_size=size), seed=0)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"dataset": "minst"}, r"unknown data set 'minst'. Did you mean 'mnist'.*folder:<path>.*hf:<name>"),
        ({"dataset": "folder:"}, r"unknown data set 'folder:'. Did you mean 'folder:<path>'"),
        ({"dataset": "digits", "target_size": 0}, r"target_size[\s\S]*greater than or equal to 1"),
        ({"dataset": "digits", "num_workers": -1}, r"num_workers[\s\S]*greater than or equal to 0"),
        ({"dataset": "digits", "augment": {"crop": -1}}, r"crop[\s\S]*greater than or equal to 0"),
        ({"dataset": "digits", "validation": "test", "validation_size": 5}, r"validation_size.*remove one"),
        ({"dataset": "imagenet", "augment": {"crop": 4}}, r"augment: must be true or false for imagenet"),
        ({"dataset": "folder:x", "augment": {"flip": True}}, r"augment: must be true or false for folder:x"),
        ({"dataset": "digits", "augmentation": True}, r"augmentation[\s\S]*Extra inputs"),
    ],
)
def test_impossible_configurations_are_named(keys, message):
    with pytest.raises(ValidationError, match=message):
        data.DataConfig(**keys)


def test_every_name_and_kind_of_path_is_a_data_set():
    names = ["mnist", "fashion_mnist", "cifar10", "cifar10_benchmark", "cifar100", "imagenet", "digits"]
    names += ["wine", "breast_cancer", "diabetes"]
    assert data.available() == names
    for name in [*names, "folder:a", "parquet:b/c", "hf:user/set", "some/set.npz"]:
        assert data.DataConfig(dataset=name).dataset == name


def test_the_folder_of_the_data(monkeypatch, tmp_path):
    config = data.DataConfig(dataset="digits")
    monkeypatch.setenv("BIOTORCH_DATA", str(tmp_path))
    assert config.folder == tmp_path
    assert data.DataConfig(dataset="digits", dataset_path="~/sets").folder == Path.home() / "sets"
    monkeypatch.delenv("BIOTORCH_DATA")
    assert config.folder == Path(platformdirs.user_cache_dir("biotorch"))


def test_the_size_of_evaluation_batches():
    assert data.DataConfig(dataset="digits").evaluation_batch_size == 500
    assert data.DataConfig(dataset="digits", batch_size=64).evaluation_batch_size == 64


@pytest.mark.parametrize(
    ("label", "told"),
    [
        (200_000, r"has the label 200000, which would make 200,001 classes of 50 examples, 199,996 of them empty"),
        (2**63 - 1, r"has the label 9223372036854775807, which would make 9,223,372,036,854,775,808 classes"),
        (2**63, r"y_train in .*set\.npz must hold labels from 0 on; found 9223372036854775808"),
        (-(2**63), r"must hold labels from 0 on; found -9223372036854775808"),
    ],
)
def test_a_label_that_is_no_class_is_named(tmp_path, label, told):
    labels = (np.arange(40) % 4).astype(np.uint64 if label >= 2**63 else np.int64)
    labels[7] = label
    with pytest.raises(data.DataError, match=told):
        data.load(data.DataConfig(dataset=write_npz(tmp_path / "set.npz", y_train=labels)), seed=0)


def test_classes_without_an_example_are_told(tmp_path):
    labels = {f"y_{part}": np.array([0, 2, 6, 0, 0] * count) for part, count in (("train", 8), ("test", 2))}
    config = data.DataConfig(dataset=write_npz(tmp_path / "set.npz", **labels))
    with pytest.warns(UserWarning, match=r"set\.npz: 4 of 7 classes have no example \(1, 3, 4, 5\)"):
        assert data.load(config, seed=0).num_outputs == 7
