"""Digests of data: equal contents have equal digests wherever they lie, and every change is noticed and named."""

import gzip
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from data_cases import write_npz
from PIL import Image

from biotorch import data
from biotorch.data import digests, sources, splits
from biotorch.errors import DataError


def write_idx(path, array, packed=False):
    content = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
    path.with_name(path.name + ".gz" * packed).write_bytes(gzip.compress(content) if packed else content)


def mnist(folder, packed=False):
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for seed, (part, count) in enumerate((("train", 30), ("t10k", 10))):
        images = np.random.default_rng(seed).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write_idx(raw / f"{part}-images-idx3-ubyte", images, packed)
        write_idx(raw / f"{part}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8), packed)
    return folder


def pictures(root, parts=("train", "test"), count=4):
    """Class folders of small pictures, all different, with times that tests can change."""
    seed = 0
    for part in parts:
        for name in ("ant", "bee"):
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                seed += 1
                pixels = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{index}.png")
                os.utime(root / part / name / f"{index}.png", (10**9, 10**9))
    return root


def record(dataset, **keys):
    return data.load(data.DataConfig(dataset=str(dataset), **keys), seed=0).record


def of_folder(root, **keys):
    return record(f"folder:{root}", target_size=8, **keys)


def test_a_digest_follows_from_the_contents_alone(tmp_path):
    plain, packed = (
        record("mnist", dataset_path=mnist(tmp_path / f"{p}", p), validation_size=5) for p in (False, True)
    )
    assert plain["digest"] == packed["digest"]
    assert plain["files"] == packed["files"]
    assert plain["files"]["train-images-idx3-ubyte"]["bytes"] == 16 + 30 * 28 * 28
    name = write_npz(tmp_path / "set.npz")
    (tmp_path / "elsewhere").mkdir()
    copy = shutil.copy(name, tmp_path / "elsewhere" / "renamed.npz")
    assert record(name)["digest"] == record(copy)["digest"]
    assert data.difference(record(name), record(copy)) is None
    assert data.describe(data.DataConfig(dataset=name)) == {"files": record(name)["files"]}
    assert record("digits")["digest"] == "b2dab7b501728c22e9119ad76740b2e1"


def test_data_that_are_not_here_have_no_description(tmp_path):
    for dataset in ("mnist", "imagenet", "none.npz"):
        with pytest.raises(FileNotFoundError):
            data.describe(data.DataConfig(dataset=dataset, dataset_path=tmp_path))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, None),
        ({"x_test": np.zeros((10, 8, 8, 3), np.uint8)}, "set.npz has other contents"),
        ({"y_train": np.arange(40) % 3, "y_test": np.arange(10) % 3}, "4 classes then, 3 classes now; set.npz has"),
        ({"x_test": np.zeros((9, 8, 8, 3), np.uint8), "y_test": np.arange(9) % 4},
         r"40 training and 10 test examples then, 40 training and 9 test examples now; set.npz had \d+ bytes then"),
        ({f"x_{part}": np.zeros((count, 5, 5, 3), np.uint8) for part, count in (("train", 40), ("test", 10))},
         r"examples of shape \(3, 8, 8\) then, examples of shape \(3, 5, 5\) now; set.npz had \d+ bytes then, \d+ now"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*are training images")
@pytest.mark.parametrize("old", [False, True])
def test_what_differs_is_told_in_words(tmp_path, changed, told, old):
    then = record(write_npz(tmp_path / "set.npz"))
    now = record(write_npz(tmp_path / "set.npz", **changed))
    if old:  # a record from before there were digests
        then = {key: value for key, value in then.items() if key not in ("files", "digest")}
        told = told.partition(";")[0] if told and ";" in told else None
    found = data.difference(then, now)
    assert (found is None) == (told is None)
    if told is not None:
        assert re.match(told, found)


def test_image_files_are_told_apart_by_name_size_and_time_and_on_request_by_contents(tmp_path):
    root = pictures(tmp_path / "set")
    first, read = of_folder(root), of_folder(root, check_contents=True)
    assert first["files"]["train/ant"].items() < read["files"]["train/ant"].items()
    shutil.copytree(root, tmp_path / "copy")
    assert of_folder(tmp_path / "copy")["digest"] == first["digest"]
    file = root / "test" / "bee" / "2.png"
    os.utime(file, (2 * 10**9, 2 * 10**9))
    told = "test/bee has files of other names, sizes or modification times"
    assert data.difference(first, of_folder(root)) == told
    assert data.difference(read, of_folder(root)) == told
    assert data.difference(read, of_folder(root, check_contents=True)) is None
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    os.utime(file, (10**9, 10**9))
    assert data.difference(first, of_folder(root)) is None  # which is why contents can be asked for
    assert data.difference(read, of_folder(root, check_contents=True)) == "test/bee has other contents"
    (root / "train" / "ant" / "0.png").unlink()
    assert data.difference(first, of_folder(root)) == (
        "8 training and 8 test examples then, 7 training and 8 test examples now; train/ant had 4 files then, 3 now"
    )


def test_a_set_of_many_classes_has_a_short_description(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "_ENTRIES", 3)
    files = of_folder(pictures(tmp_path))["files"]
    assert {name: entry["files"] for name, entry in files.items()} == {"test": 8, "train": 8}


def test_files_that_change_while_they_are_read_are_refused(tmp_path, monkeypatch):
    name, reader = write_npz(tmp_path / "set.npz"), sources._NPZ.read

    def meanwhile(*args):
        pool = reader(*args)
        write_npz(tmp_path / "set.npz", train=60)
        return pool

    monkeypatch.setattr(sources, "_NPZ", sources.Source(meanwhile, sources._NPZ.files))
    with pytest.raises(DataError, match=r"set\.npz has changed since it was first read"):
        record(name)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_file_that_changes_during_a_run_is_named(tmp_path, workers):
    config = data.DataConfig(
        dataset=f"folder:{pictures(tmp_path)}", target_size=8, num_workers=workers, skip_corrupt=True
    )
    test = data.load(config, seed=0).test
    assert sum(len(labels) for _, labels in test.in_order(4)) == 8
    shutil.copy(tmp_path / "train" / "ant" / "0.png", tmp_path / "test" / "bee" / "1.png")
    with pytest.raises(DataError, match=r"test/bee/1\.png has changed since it was first read"):
        list(test.in_order(4))


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("train/ant/loop", "train/ant"),
        ("train/ant/up", "train"),
        ("train/ant/far", "."),
        ("train/ant/above", ".."),
        ("train/ant/other", "train/bee"),
        ("train/cat", "train/bee"),
        ("test/ant/training", "train/ant"),
    ],
)
def test_a_link_to_a_folder_that_is_read_anyway_is_refused(tmp_path, link, target):
    root = pictures(tmp_path / "set")
    os.symlink(root / target, root / link)
    if link == "train/cat":
        os.symlink(root / target, root / "test" / "cat")
    with pytest.raises(DataError, match=r"are one folder \(by a symbolic link\).*Remove the link"):
        of_folder(root)


def test_links_to_other_folders_and_files_are_followed(tmp_path):
    pictures(tmp_path / "pool", parts=("a", "b"))
    for part, source in (("train", "a"), ("test", "b")):
        (tmp_path / "set" / part).mkdir(parents=True)
        os.symlink(tmp_path / "pool" / source / "ant", tmp_path / "set" / part / "ant")
        (tmp_path / "set" / part / "bee").mkdir()
        for file in (tmp_path / "pool" / source / "bee").iterdir():
            os.symlink(file, tmp_path / "set" / part / "bee" / file.name)
    found = of_folder(tmp_path / "set")
    assert (found["train"] + found["validation"], found["test"], found["repeated"]) == (8, 8, None)


@pytest.mark.parametrize("same", ["link", "contents", None])
def test_files_that_are_in_training_and_test_are_told(tmp_path, same):
    root, keys = pictures(tmp_path), {"check_contents": True} if same == "contents" else {}
    train, test = root / "train" / "ant" / "1.png", root / "test" / "ant" / "3.png"
    test.unlink()
    if same == "link":
        os.symlink(train, test)
    else:
        shutil.copy(train, test)
    if same is None:  # contents are only compared on request
        assert of_folder(root)["repeated"] is None
        return
    with pytest.warns(
        UserWarning, match=rf"1 of the 8 test examples are equal to training.*{test} of the test is {train} of the"
    ):
        assert of_folder(root, **keys)["repeated"] == {"number": 1, "test": str(test), "train": str(train)}


@pytest.mark.parametrize("shape", [(8, 8, 3), (5, 3, 1), (28, 28)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_examples_that_are_in_training_and_test_are_told(tmp_path, shape, dtype):
    generator = np.random.default_rng(0)
    train, test = (generator.integers(0, 256, (count, *shape)).astype(dtype) for count in (40, 10))
    train[:, 0, 0] = 0  # a bit of the highest byte of eight is easily lost in sums modulo 2^64
    name = write_npz(tmp_path / "set.npz", x_train=train, x_test=test)
    assert record(name)["repeated"] is None
    test[[3, 6, 7]] = train[[23, 5, 7]]  # of the same class are examples 3 and 23, 7 and 7
    count = 3 if dtype is np.uint8 else 2
    with pytest.warns(UserWarning, match=f"{count} of the 10 test examples.*example 3 of the test is example 23 of"):
        found = record(write_npz(tmp_path / "set.npz", x_train=train, x_test=test))
    assert found["repeated"] == {"number": count, "test": "example 3", "train": "example 23"}


def test_rows_with_equal_keys_are_no_repetition_unless_they_are_equal(monkeypatch):
    monkeypatch.setattr(splits, "_keys", lambda parts: torch.zeros(len(parts[0]), dtype=torch.int64))
    assert splits.repeated_rows([torch.tensor([[1], [2]])], [torch.tensor([[3]])]) is None


@pytest.mark.parametrize(
    ("then", "now", "told"),
    [
        ({"classes": 1, "target_mean": [0.5]}, {"classes": 2}, "1 target of a regression then, 2 classes now"),
        ({"target_mean": [0.5, 1.0]}, {"target_mean": [0.5]}, "2 targets of a regression then, 1 target of a .*now"),
        ([1], {"classes": 2}, None),
        ({"classes": 2}, None, None),
    ],
)
def test_what_is_predicted_differs_and_what_is_no_record_does_not(then, now, told):
    found = data.difference(then, now)
    assert found is told or re.fullmatch(told, found)


def test_known_sets_are_recorded_without_a_warning(tmp_path, recwarn):
    folder = mnist(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8)
    write_idx(folder / "MNIST" / "raw" / "t10k-images-idx3-ubyte", images[:10])
    assert record("mnist", dataset_path=folder, validation_size=5)["repeated"]["number"] == 10
    assert not [each for each in recwarn if "training images" in str(each.message)]


def test_a_pipe_is_not_waited_for(tmp_path):
    pictures(tmp_path / "set")
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "set" / "train" / "ant" / "pipe.png")
    for dataset in (f"text:{tmp_path / 'pipe'}", f"folder:{tmp_path / 'set'}", f"parquet:{tmp_path / 'pipe'}"):
        with pytest.raises(DataError, match=r"pipe(\.png)? is neither a file nor a folder"):
            record(dataset)


def test_a_path_with_a_null_byte_is_not_found():
    with pytest.raises(FileNotFoundError, match="was not found"):
        sources.read("text:a\0b", Path(), None)
