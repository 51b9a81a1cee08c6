"""Sets in tables: parquet files as the Hugging Face hub has them, and .npz files; every wrong form is named."""

import importlib
import io
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from data_cases import write_npz
from PIL import Image

from biotorch import data
from biotorch.errors import NotEnoughMemoryError

pyarrow = pytest.importorskip("pyarrow")
parquet = importlib.import_module("pyarrow.parquet")


def encoded(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def pixels(count, shape=(8, 6, 3), seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8))


def write(file, images, labels=None, image="img", label="label", **columns):
    """A table of PNG images, in groups of a few rows; an image may be given as bytes, too."""
    file.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"bytes": each if isinstance(each, bytes) else encoded(each), "path": None} for each in images]
    struct = pyarrow.array(cells, pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())]))
    labels = [index % 3 for index in range(len(images))] if labels is None else labels
    table = pyarrow.table({**columns, image: struct, label: pyarrow.array(labels, pyarrow.int64())})
    parquet.write_table(table, file, row_group_size=4)


def load(path, **keys):
    return data.load(data.DataConfig(dataset=f"parquet:{path}", **keys), seed=0)


def everything(loaded):
    """All images of the training file, in no order, as bytes."""
    splits = (loaded.train, loaded.validation)
    return sorted(image.numpy().tobytes() for split in splits for image in split.images)


@pytest.mark.parametrize("image", ["img", "image"])
@pytest.mark.parametrize("place", ["", "data", "plain_text"])
def test_parquet_files_become_three_splits(tmp_path, image, place):
    train, test = pixels(20), pixels(5, seed=1)
    write(tmp_path / place / "train.parquet", train, image=image)
    write(tmp_path / place / "test.parquet", test, image=image)
    loaded = load(tmp_path)
    assert [len(split) for split in (loaded.train, loaded.validation, loaded.test)] == [18, 2, 5]
    assert loaded.num_outputs == 3
    assert loaded.test.input_shape == (3, 8, 6)
    assert torch.equal(loaded.test.images, torch.tensor(np.stack(test)))
    assert loaded.test.labels.tolist() == [0, 1, 2, 0, 1]
    assert everything(loaded) == sorted(each.tobytes() for each in train)
    exact = np.stack(train).astype(np.float64) / 255
    assert loaded.mean == tuple(np.round(exact.mean((0, 1, 2)), 4))
    assert loaded.std == tuple(np.round(exact.std((0, 1, 2)), 4))


def test_shards_are_put_together_in_order_and_a_missing_one_is_named(tmp_path):
    train = pixels(20)
    for shard in range(2):
        write(tmp_path / f"train-{shard:05}-of-00002.parquet", train[10 * shard : 10 * shard + 10], labels=[shard] * 10)
    write(tmp_path / "validation-00000-of-00001.parquet", pixels(3))
    loaded = load(tmp_path)
    assert everything(loaded) == sorted(each.tobytes() for each in train)
    assert loaded.train.labels.sum() + loaded.validation.labels.sum() == 10
    assert len(loaded.test) == 3
    (tmp_path / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(data.DataError, match=r"only 1 of the 2 shards of train"):
        load(tmp_path)


def test_grey_images_stay_grey_and_among_coloured_ones_become_so(tmp_path):
    grey, coloured = pixels(6, (8, 8)), pixels(6, (8, 8, 3))
    write(tmp_path / "grey" / "train.parquet", grey)
    write(tmp_path / "grey" / "test.parquet", grey)
    assert torch.equal(load(tmp_path / "grey").test.images[..., 0], torch.tensor(np.stack(grey)))
    write(tmp_path / "mixed" / "train.parquet", coloured)
    write(tmp_path / "mixed" / "test.parquet", grey)
    mixed = load(tmp_path / "mixed").test
    assert mixed.input_shape == (3, 8, 8)
    assert torch.equal(mixed.images[..., 2], torch.tensor(np.stack(grey)))


def test_images_of_unequal_sizes_need_a_target_size(tmp_path):
    write(tmp_path / "train.parquet", [*pixels(5), *pixels(5, (12, 9, 3))])
    write(tmp_path / "test.parquet", pixels(2))
    with pytest.raises(data.DataError, match=r"different sizes, from 8x6 to 12x9.*data\.target_size"):
        load(tmp_path)
    assert load(tmp_path, target_size=10).train.input_shape == (3, 10, 10)


def test_a_target_size_resizes_as_it_does_for_other_sets(tmp_path):
    images = pixels(12, (20, 20, 3))
    write(tmp_path / "train.parquet", images)
    write(tmp_path / "test.parquet", images)
    name = write_npz(tmp_path / "set.npz", **{f"x_{part}": np.stack(images) for part in ("train", "test")},
                     **{f"y_{part}": np.arange(12) for part in ("train", "test")})  # fmt: skip
    other = data.load(data.DataConfig(dataset=name, target_size=9), seed=0)
    assert torch.equal(load(tmp_path, target_size=9).test.images, other.test.images)


def test_the_label_column_is_found(tmp_path):
    write(tmp_path / "test.parquet", pixels(2), label="fine_label", coarse_label=[7, 7], id=[8, 8])
    write(tmp_path / "train.parquet", pixels(20), label="fine_label", coarse_label=[7] * 20, id=[8] * 20)
    assert load(tmp_path).num_outputs == 3
    write(tmp_path / "train.parquet", pixels(20), label="digit", other=["x"] * 20)
    assert load(tmp_path).num_outputs == 3
    write(tmp_path / "train.parquet", pixels(20), label="a", b=list(range(20)))
    with pytest.raises(
        data.DataError, match=r"train\.parquet needs.*its columns: b \(int64\), img \(struct.*a \(int64\)"
    ):
        load(tmp_path)


@pytest.mark.parametrize("broken", [b"", b"no image", encoded(pixels(1, (40, 40, 3))[0])[:200]])
def test_a_damaged_image_is_named_by_file_and_row(tmp_path, broken):
    write(tmp_path / "train.parquet", [*pixels(13), broken, *pixels(3)])
    write(tmp_path / "test.parquet", pixels(2))
    with pytest.raises(data.DataError, match=r"row 13 of .*train\.parquet"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("label", "message"), [(None, r"row 1 of .*test\.parquet has no label"), (-1, r"from 0 on; found -1")]
)
def test_labels_that_are_none_are_named(tmp_path, label, message):
    write(tmp_path / "train.parquet", pixels(9))
    write(tmp_path / "test.parquet", pixels(2), labels=[0, label])
    with pytest.raises(data.DataError, match=message):
        load(tmp_path)


def test_folders_that_cannot_be_a_set_are_named(tmp_path):
    with pytest.raises(data.DataError, match=r"no train\*\.parquet"):
        load(tmp_path)
    write(tmp_path / "a" / "train.parquet", pixels(9))
    with pytest.raises(data.DataError, match=r"a has train\*\.parquet, but neither test\*\.parquet"):
        load(tmp_path)
    write(tmp_path / "b" / "train.parquet", pixels(9))
    with pytest.raises(data.DataError, match=r"more than one folder.*give one of them: .*a, .*b"):
        load(tmp_path)
    write(tmp_path / "a" / "test.parquet", pixels(2))
    file = tmp_path / "a" / "train.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(data.DataError, match=r"a/train\.parquet is not a complete parquet file"):
        load(tmp_path / "a")


def test_a_relative_path_starts_at_the_working_folder_or_at_the_data(tmp_path, monkeypatch):
    monkeypatch.setenv("BIOTORCH_DATA", str(tmp_path / "data"))
    for count, place in ((10, tmp_path / "data" / "set"), (20, tmp_path / "here" / "set")):
        write(place / "train.parquet", pixels(count))
        write(place / "test.parquet", pixels(2))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load("set").record["train"] == 9
    monkeypatch.chdir(tmp_path / "here")
    assert load("set").record["train"] == 18
    monkeypatch.setenv("HOME", str(tmp_path / "here"))
    assert load("~/set").record["train"] == 18
    with pytest.raises(FileNotFoundError, match=r"'unset' .*here/unset, .*data/unset.*BIOTORCH_DATA"):
        load("unset")


@pytest.mark.parametrize(("module", "dataset"), [("pyarrow.parquet", "parquet:."), ("huggingface_hub", "hf:user/set")])
def test_a_missing_extra_is_told_how_to_install(tmp_path, monkeypatch, module, dataset):
    write(tmp_path / "train.parquet", pixels(9))
    write(tmp_path / "test.parquet", pixels(2))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'biotorch-feedback\[data\]'"):
        data.load(data.DataConfig(dataset=dataset, dataset_path=tmp_path), seed=0)


def test_more_rows_than_memory_are_told_before_they_are_read(tmp_path, monkeypatch):
    for part, count in (("train", 20), ("test", 5)):
        write(tmp_path / f"{part}.parquet", pixels(count, seed=count))
    taken = 2 * 20 * 8 * 6 * 3  # twice for a moment, one by one and stacked
    monkeypatch.setattr("biotorch._memory.available", lambda: taken - 1)
    with pytest.raises(
        NotEnoughMemoryError, match=r"train\.parquet says that it has 20 images, which would take 0\.0 G"
    ):
        load(tmp_path)
    monkeypatch.setattr("biotorch._memory.available", lambda: taken)
    assert len(load(tmp_path).test) == 5


def test_a_label_of_more_than_63_bits_is_named(tmp_path):
    for part in ("train", "test"):
        columns = {"label": pyarrow.array([0, 1, 2**63 + 5], pyarrow.uint64())}
        table = pyarrow.table({"img": [{"bytes": encoded(each)} for each in pixels(3)], **columns})
        parquet.write_table(table, tmp_path / f"{part}.parquet")
    with pytest.raises(data.DataError, match=r"row 2 of .*train\.parquet .*found 9223372036854775813"):
        load(tmp_path)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_damaged_file_is_an_error_or_readable_and_never_anything_else(tmp_path, seed):
    write(tmp_path / "train.parquet", pixels(20))
    write(tmp_path / "test.parquet", pixels(5, seed=1))
    good, generator = (tmp_path / "train.parquet").read_bytes(), np.random.default_rng(seed)
    header = int.from_bytes(good[-8:-4], "little")
    refused = 0
    for _ in range(2000 if seed else 60):
        damaged = bytearray(good)
        damaged[-generator.integers(1, header + 9)] ^= 1 << generator.integers(8)
        (tmp_path / "train.parquet").write_bytes(damaged)
        try:
            load(tmp_path)
        except (data.DataError, NotEnoughMemoryError):
            refused += 1
    assert refused > 10


def test_a_set_of_the_hub_is_fetched_into_the_data_folder_and_read(tmp_path, monkeypatch):
    calls = []

    def snapshot_download(name, *, repo_type, revision, allow_patterns, cache_dir, local_files_only):
        calls.append((name, revision, repo_type, allow_patterns, cache_dir))
        write(cache_dir / "snapshot" / "data" / "train-00000-of-00001.parquet", pixels(10))
        write(cache_dir / "snapshot" / "data" / "test-00000-of-00001.parquet", pixels(4))
        return str(cache_dir / "snapshot")

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
    loaded = data.load(data.DataConfig(dataset="hf:user/set@v2", dataset_path=tmp_path), seed=0)
    assert [len(split) for split in (loaded.train, loaded.validation, loaded.test)] == [9, 1, 4]
    assert calls == [("user/set", "v2", "dataset", ["*.parquet"], tmp_path / "huggingface")]


@pytest.mark.parametrize("error", [ConnectionError("no network"), ValueError("no such name")])
def test_a_set_that_the_hub_does_not_give_is_an_error_with_a_cure(tmp_path, monkeypatch, error):
    def snapshot_download(*args, **kwargs):
        raise error

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
    with pytest.raises(FileNotFoundError, match=rf"'user/set'.*{error}.*parquet:<their folder>"):
        data.load(data.DataConfig(dataset="hf:user/set", dataset_path=tmp_path), seed=0)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((8, 6), (1, 8, 6)),
        ((8, 6, 1), (1, 8, 6)),
        ((8, 6, 3), (3, 8, 6)),
        ((3, 8, 6), (3, 8, 6)),
        ((1, 8, 6), (1, 8, 6)),
        ((3, 5, 3), (3, 3, 5)),
    ],
)
@pytest.mark.parametrize("column", [False, True])
def test_npz_images_in_every_layout(tmp_path, shape, expected, column):
    train, test = np.stack(pixels(20, shape)), np.stack(pixels(5, shape, seed=1))
    targets = [np.arange(count).reshape(-1, 1) % 4 if column else np.arange(count) % 4 for count in (20, 5)]
    name = write_npz(tmp_path / "set.npz", x_train=train, y_train=targets[0], x_test=test, y_test=targets[1])
    loaded = data.load(data.DataConfig(dataset=name), seed=0)
    assert loaded.train.input_shape == expected
    assert loaded.num_outputs == 4
    assert loaded.test.labels.tolist() == [0, 1, 2, 3, 0]
    channels_first = test[:, None] if len(shape) == 2 else test if shape == expected else test.transpose(0, 3, 1, 2)
    assert torch.equal(loaded.test.images.permute(0, 3, 1, 2), torch.tensor(channels_first))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x_test": None}, r"lacks x_test; needed: x_train.*found: x_train, y_train, y_test"),
        ({"x_train": np.zeros((40, 8, 8, 3), np.float32)}, r"x_train holds float32, but x_test uint8"),
        (
            {"x_train": np.zeros((40, 8, 8, 3), np.int64)},
            r"x_train in .*uint8 images.*found int64 of shape \(40, 8, 8, 3\)\. Cast features to float32",
        ),
        ({"x_test": np.zeros((10, 8, 8, 2), np.uint8)}, r"x_test in .*found shape \(10, 8, 8, 2\)"),
        ({"x_test": np.zeros((10, 64), np.uint8)}, r"x_test in .*found shape \(10, 64\)"),
        (
            {"x_test": np.zeros((10, 4, 4, 3), np.uint8)},
            r"training images are \(8, 8, 3\).*test images are \(4, 4, 3\)",
        ),
        ({"x_test": np.zeros((0, 8, 8, 3), np.uint8), "y_test": np.zeros(0, int)}, r"no test images"),
        ({"y_train": np.zeros(39, int)}, r"x_train has 40 images, but y_train has 39 labels"),
        ({"y_train": np.zeros(40)}, r"of one kind; found float64 of shape \(40, 1\) and int64 of shape \(10,\)"),
        ({"y_test": np.zeros((10, 4), int)}, r"y_test in .*one integer per example.*\(10, 4\)"),
        ({"y_test": np.arange(10) - 1}, r"y_test in .*from 0 on; found -1"),
        ({"y_test": np.array([None] * 10)}, r"y_test in .*must be an array \(N, ...\) of numbers; found object"),
    ],
)
def test_npz_arrays_that_are_not_as_needed_are_named(tmp_path, changed, message):
    name = write_npz(tmp_path / "set.npz", **changed)
    with pytest.raises(data.DataError, match=message):
        data.load(data.DataConfig(dataset=name), seed=0)


def test_npz_files_that_are_damaged_or_missing_are_named(tmp_path):
    path = Path(write_npz(tmp_path / "set.npz"))
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(data.DataError, match=r"set\.npz is not a complete \.npz file"):
        data.load(data.DataConfig(dataset=str(path)), seed=0)
    path.write_bytes(content[:500] + b"\0" * 100 + content[600:])
    with pytest.raises(data.DataError, match=r"x_train in .*set\.npz cannot be read"):
        data.load(data.DataConfig(dataset=str(path)), seed=0)
    with pytest.raises(FileNotFoundError, match=r"none\.npz.*BIOTORCH_DATA"):
        data.load(data.DataConfig(dataset="none.npz"), seed=0)


@pytest.mark.skipif(
    not os.path.isdir(os.path.join(os.environ.get("BIOTORCH_DATA") or "-", "cifar10-jpeg")),
    reason="BIOTORCH_DATA names no folder with cifar10-jpeg",
)
def test_real_parquet_files():
    loaded = load("cifar10-jpeg", augment=True, validation_size=5000)
    assert [len(split) for split in (loaded.train, loaded.validation, loaded.test)] == [45000, 5000, 10000]
    assert loaded.train.input_shape == (3, 32, 32)
    assert loaded.num_outputs == 10
    assert loaded.test.labels.bincount().tolist() == [1000] * 10
    torch.testing.assert_close(torch.tensor(loaded.mean), torch.tensor([0.4914, 0.4821, 0.4465]), atol=0.001, rtol=0)
    images, _ = next(loaded.train.batches([torch.arange(2000)]))
    assert images.std() == pytest.approx(1, abs=0.1)
