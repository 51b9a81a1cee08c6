"""Float features, sequences and regressions in .npz files, and files that lie about what they hold."""

import io
import struct
import zipfile

import numpy as np
import pytest
import torch

from biotorch import data

draw = np.random.default_rng(0)


def write(path, shape=(5,), **changed):
    arrays = {
        "x_train": draw.normal(3, 2, (40, *shape)),
        "y_train": np.arange(40) % 3,
        "x_test": draw.normal(3, 2, (10, *shape)),
        "y_test": np.arange(10) % 3,
        **changed,
    }
    np.savez(path, **arrays)
    return arrays


def load(path, **keys):
    return data.load(data.DataConfig(dataset=str(path), **keys), seed=0)


@pytest.mark.parametrize(
    ("shape", "over"),
    [((5,), (0,)), ((7, 5), (0, 1)), ((3, 4, 6), (0, 2, 3)), ((), (0,))],
)
def test_features_are_standardised_on_the_training_split_by_feature_or_channel(tmp_path, shape, over):
    arrays = write(tmp_path / "set.npz", shape)
    loaded = load(tmp_path / "set.npz")
    assert (loaded.kind, loaded.input_shape, loaded.num_outputs) == ("features", shape or (1,), 3)
    shown = [next(split.in_order(40)) for split in (loaded.train, loaded.validation, loaded.test)]
    inputs = torch.cat([shown[0][0], shown[1][0]]).double().numpy()
    np.testing.assert_allclose(shown[0][0].double().mean(over), 0, atol=1e-6)
    np.testing.assert_allclose(shown[0][0].double().std(over, correction=0), 1, atol=1e-6)
    assert shown[0][0].dtype == torch.float32
    # The map is one line for each feature or channel, and the same for the three splits.
    raw = load(tmp_path / "set.npz", standardise=False)
    plain = torch.cat([split.inputs for split in (raw.train, raw.validation)]).double().numpy()
    mean = raw.train.inputs.double().mean(over, keepdim=True).numpy()
    std = raw.train.inputs.double().std(over, correction=0, keepdim=True).numpy()
    np.testing.assert_allclose(inputs, (plain - mean) / std, atol=1e-5)
    test = arrays["x_test"].reshape(shown[2][0].shape)
    np.testing.assert_allclose(shown[2][0], (test - mean) / std, atol=1e-5)


def test_a_sequence_has_a_class_or_a_class_for_each_step(tmp_path):
    steps = {"y_train": draw.integers(0, 4, (40, 7)), "y_test": draw.integers(0, 4, (10, 7))}
    write(tmp_path / "one.npz", (7, 2))
    write(tmp_path / "each.npz", (7, 2), **steps)
    one, each = load(tmp_path / "one.npz"), load(tmp_path / "each.npz")
    assert (one.train.per_token, one.test.labels.shape) == (False, (10,))
    assert (each.train.per_token, each.num_outputs) == (True, 4)
    np.testing.assert_array_equal(each.test.labels, steps["y_test"])


@pytest.mark.parametrize("task", [None, "regression"])
@pytest.mark.parametrize("shape", [(), (1,), (2,)])
def test_targets_of_a_regression(tmp_path, task, shape):
    numbers = draw.normal(5, 3, (50, *shape))
    numbers = numbers if task is None else numbers.round().astype(int)
    write(tmp_path / "set.npz", y_train=numbers[:40], y_test=numbers[40:])
    loaded = load(tmp_path / "set.npz", task=task)
    k = shape[0] if shape else 1
    assert (loaded.task, loaded.num_outputs) == ("regression", k)
    targets = loaded.test.labels.double() * torch.tensor(loaded.target_std) + torch.tensor(loaded.target_mean)
    np.testing.assert_allclose(targets, numbers[40:].reshape(10, k), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(loaded.train.labels.mean(0), 0, atol=1e-6)
    assert loaded.train.labels.dtype == torch.float32


def test_images_can_have_targets_of_a_regression(tmp_path):
    images = {f"x_{part}": draw.integers(0, 256, (n, 8, 8), np.uint8) for part, n in (("train", 40), ("test", 10))}
    write(tmp_path / "set.npz", **images, y_train=draw.normal(9, 3, 40), y_test=draw.normal(9, 3, 10))
    loaded = load(tmp_path / "set.npz")
    assert (loaded.kind, loaded.task, loaded.input_shape) == ("images", "regression", (1, 8, 8))
    assert loaded.train.labels.mean() == pytest.approx(0, abs=1e-6)
    assert loaded.record["target_std"] == list(loaded.target_std)


def test_whole_floats_are_classes_if_the_task_says_so(tmp_path):
    write(tmp_path / "set.npz", y_train=np.arange(40) % 3.0, y_test=np.arange(10) % 3.0)
    assert load(tmp_path / "set.npz", task="classification").test.labels.tolist() == [0, 1, 2] * 3 + [0]


@pytest.mark.parametrize(
    ("changed", "keys", "message"),
    [
        ({"x_test": np.full((10, 5), np.nan)}, {}, r"x_test in .*NaN or infinite in 10 of 10 examples"),
        ({"y_train": np.full(40, np.inf)}, {}, r"y_train in .*40 values that are NaN or infinite"),
        ({"x_test": np.zeros((10, 4))}, {}, r"x_train has shape \(5,\), but one of x_test \(4,\)"),
        ({"y_train": np.zeros((40, 7), int)}, {}, r"one integer per example, or one per step.*\(40, 7\)"),
        ({"y_train": np.zeros((40, 7, 2))}, {}, r"y_train in .*one number per example, or \(N, k\)"),
        ({"y_train": np.ones(40), "y_test": np.zeros(10)}, {}, r"target 0 is 1 in all examples of the training split"),
        ({"y_train": np.ones(40) / 2}, {"task": "classification"}, r"y_train in .*has fractions"),
        ({"x_train": np.array(1.0)}, {}, r"x_train in .*must be an array \(N, ...\) of numbers; found float64"),
        ({"y_test": np.array(["a"] * 10)}, {}, r"y_test in .*of numbers; found <U1"),
        ({"x_train": np.zeros((40, 0))}, {}, r"x_train in .*has no values"),
        ({}, {"target_size": 8}, r"data\.target_size: a setting of images, but .*set\.npz has float features"),
        ({}, {"augment": True}, r"data\.augment: a setting of images"),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path, changed, keys, message):
    write(tmp_path / "set.npz", **changed)
    with pytest.raises(data.DataError, match=message):
        load(tmp_path / "set.npz", **keys)


def header(shape, dtype="<f8", content=b"\0" * 200):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue() + content


MAGIC = b"\x93NUMPY"


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (header((10**12, 10**6)), r"by its header it has the shape .*but the archive has 200"),
        (header((-1, 5)), r"by its header it has the shape \(-1, 5\)"),
        (header((10, 5)), r"takes 400 bytes of float64, but the archive has 200"),
        (header((0, 10**30), content=b""), r"cannot be read"),
        (header((40, 5), "|O"), r"of numbers; found object"),
        (b"hello", r"cannot be read"),
        (MAGIC + b"\3\0" + struct.pack("<I", 2) + b"{}", r"version \(3, 0\)"),
        (MAGIC + b"\1\0" + struct.pack("<H", 9000) + b"(" * 9000, r"cannot be read"),
        (MAGIC + b"\2\0" + struct.pack("<I", 2**31) + b"(" * 1000, r"cannot be read"),
    ],
)
def test_members_that_lie_are_named_before_their_memory_is_taken(tmp_path, member, message):
    write(tmp_path / "good.npz")
    with zipfile.ZipFile(tmp_path / "good.npz") as good, zipfile.ZipFile(tmp_path / "set.npz", "w") as lying:
        for name in good.namelist():
            lying.writestr(name, member if name == "x_train.npy" else good.read(name))
    with pytest.raises(data.DataError, match=rf"x_train in .*set\.npz .*{message}"):
        load(tmp_path / "set.npz")


def test_a_size_in_the_archive_that_lies_and_arrays_beyond_the_memory_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "set.npz"
    np.savez_compressed(
        path, x_train=np.zeros((10**6, 5)), **{name: np.zeros(9) for name in ("y_train", "x_test", "y_test")}
    )
    content = bytearray(path.read_bytes())
    place = content.index(b"PK\1\2") + 24  # size of the first member in the directory
    content[place : place + 4] = struct.pack("<I", 0xF0000000)
    (tmp_path / "lie.npz").write_bytes(content)
    with pytest.raises(data.DataError, match=r"x_train in .*lie\.npz is damaged: .*but the archive has 4,026,531,712"):
        load(tmp_path / "lie.npz")
    monkeypatch.setattr("biotorch._memory.available", lambda: 2**25)
    with pytest.raises(MemoryError, match=r"set\.npz would take 0\.1 GiB of memory"):
        load(path)
