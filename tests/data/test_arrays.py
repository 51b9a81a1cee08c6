"""MNIST and CIFAR by name: right files, whole downloads, clear errors. The downloads themselves are imitated."""

import gzip
import hashlib
import os
import pickle
import threading
import time

import numpy as np
import pytest
import torch
import torchvision
from data_cases import needs_data

from biotorch import _files, data

TRAIN, TEST = 30, 10


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def mnist_files():
    generator = np.random.default_rng(0)
    for part, count in (("train", TRAIN), ("t10k", TEST)):
        yield f"{part}-images-idx3-ubyte", idx(generator.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        yield f"{part}-labels-idx1-ubyte", idx((np.arange(count) % 10).astype(np.uint8))


def write_mnist(folder, packed=False):
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in mnist_files():
        (raw / f"{name}.gz" if packed else raw / name).write_bytes(gzip.compress(content) if packed else content)
    return raw


def mnist(folder):
    return data.load(data.DataConfig(dataset="mnist", dataset_path=folder, validation_size=5), seed=0)


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def imitate_download(monkeypatch, stop_after=4, error=None, delay=0.0):
    """torchvision's download of one archive: it leaves a file, or half of one where it stops."""
    contents, done = dict(mnist_files()), []

    def download(url, download_root, filename, md5):
        name = filename.removesuffix(".gz")
        path = os.path.join(download_root, name)
        time.sleep(delay)
        with open(path, "wb") as file:
            if len(done) >= stop_after:
                file.write(contents[name][:99])
                raise error
            file.write(contents[name])
        done.append(name)

    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", download)
    return done


def test_missing_files_that_cannot_be_downloaded_are_told_where_to_go(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", refuse)
    with pytest.raises(FileNotFoundError, match=r"(?s)no network.*train-images-idx3-ubyte.*MNIST/raw.*BIOTORCH_DATA"):
        mnist(tmp_path)


def test_missing_cifar_is_told_where_to_go(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", refuse)
    with pytest.raises(FileNotFoundError, match=r"(?s)no network.*data_batch_1.*cifar-10-batches-py.*BIOTORCH_DATA"):
        data.load(data.DataConfig(dataset="cifar10", dataset_path=tmp_path), seed=0)


@pytest.mark.parametrize("error", [OSError("connection lost"), RuntimeError("wrong checksum"), KeyboardInterrupt()])
def test_a_download_that_breaks_off_leaves_nothing(tmp_path, monkeypatch, error):
    imitate_download(monkeypatch, stop_after=2, error=error)
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else FileNotFoundError
    with pytest.raises(expected):
        mnist(tmp_path)
    assert files(tmp_path) <= {".MNIST.lock"}
    done = imitate_download(monkeypatch)
    assert len(mnist(tmp_path).train) == TRAIN - 5
    assert len(done) == 4


def test_what_a_killed_process_left_is_not_taken_for_whole(tmp_path, monkeypatch):
    half = tmp_path / ".MNIST.partial" / "MNIST" / "raw"
    half.mkdir(parents=True)
    (tmp_path / ".MNIST.partial" / ".biotorch").touch()
    for name, content in mnist_files():
        (half / name).write_bytes(content[:50])
    imitate_download(monkeypatch)
    assert len(mnist(tmp_path).test) == TEST
    assert files(tmp_path) <= {".MNIST.lock", *(f"MNIST/raw/{name}" for name, _ in mnist_files())}


def test_files_appear_only_when_all_are_there(tmp_path):
    def download(partial):
        for name in ("a", "b"):
            (partial / name).write_text(name)
            assert files(tmp_path) <= {".set.lock", ".set.partial/.biotorch", ".set.partial/a", ".set.partial/b"}

    _files.complete(tmp_path, "set", ["a", "b"], download)
    assert files(tmp_path) - {".set.lock"} == {"a", "b"}


def test_of_two_processes_one_downloads_and_the_other_waits(tmp_path, monkeypatch):
    done = imitate_download(monkeypatch, delay=0.02)
    loaded = []
    threads = [threading.Thread(target=lambda: loaded.append(mnist(tmp_path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == 2
    assert len(done) == 4


@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_that_has_the_files_is_only_read(tmp_path, monkeypatch, packed):
    def refuse(*args, **kwargs):
        raise AssertionError("the folder would be written to")

    write_mnist(tmp_path, packed)
    monkeypatch.setattr(_files, "FileLock", refuse)
    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", refuse)
    before = files(tmp_path)
    for folder in (tmp_path / "MNIST" / "raw", tmp_path / "MNIST", tmp_path):
        folder.chmod(0o555)
    try:
        loaded = mnist(tmp_path)
    finally:
        for folder in (tmp_path, tmp_path / "MNIST", tmp_path / "MNIST" / "raw"):
            folder.chmod(0o755)
    assert [len(split) for split in (loaded.train, loaded.validation, loaded.test)] == [TRAIN - 5, 5, TEST]
    images = torch.from_numpy(np.frombuffer(dict(mnist_files())["t10k-images-idx3-ubyte"], np.uint8, offset=16).copy())
    assert torch.equal(loaded.test.images.flatten(), images)
    assert files(tmp_path) == before


@pytest.mark.parametrize("keep", [0, 3, 10, 200])
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_a_truncated_file_is_named(tmp_path, name, keep):
    raw = write_mnist(tmp_path)
    content = (raw / name).read_bytes()
    (raw / name).write_bytes(content[: min(keep, len(content) - 1)])
    with pytest.raises(data.DataError, match=rf"{name} is damaged.*Delete it"):
        mnist(tmp_path)


def test_a_truncated_archive_is_named(tmp_path):
    raw = write_mnist(tmp_path, packed=True)
    path = raw / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(data.DataError, match=r"train-images-idx3-ubyte\.gz is damaged"):
        mnist(tmp_path)


def test_files_that_do_not_belong_together_are_named(tmp_path):
    raw = write_mnist(tmp_path)
    (raw / "train-labels-idx1-ubyte").write_bytes((raw / "t10k-labels-idx1-ubyte").read_bytes())
    with pytest.raises(data.DataError, match=r"train-images-idx3-ubyte and its labels do not fit each other"):
        mnist(tmp_path)


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A small CIFAR-10 and CIFAR-100, with their checksums in torchvision's lists."""
    generator = np.random.default_rng(0)
    for kind, key, parts in (
        (torchvision.datasets.CIFAR10, "labels", [f"data_batch_{i}" for i in range(1, 6)]),
        (torchvision.datasets.CIFAR100, "fine_labels", ["train"]),
    ):
        folder = tmp_path / kind.base_folder
        folder.mkdir()

        def write(name, content, folder=folder):
            content = pickle.dumps(content)
            (folder / name).write_bytes(content)
            return hashlib.md5(content).hexdigest()

        def part(name, key=key, write=write):
            pixels = generator.integers(0, 256, (8, 3072), dtype=np.uint8)
            return [name, write(name, {"data": pixels, key: list(range(8))})]

        monkeypatch.setattr(kind, "train_list", [part(name) for name in parts])
        monkeypatch.setattr(kind, "test_list", [part(kind.test_list[0][0])])
        meta = {**kind.meta, "md5": write(kind.meta["filename"], {kind.meta["key"]: list("abcdefgh")})}
        monkeypatch.setattr(kind, "meta", meta)
    return tmp_path


@pytest.mark.parametrize(
    ("dataset", "count", "augment"),
    [("cifar10", 40, None), ("cifar10_benchmark", 40, {"crop": 4, "flip": True}), ("cifar100", 8, None)],
)
def test_cifar_by_name(cifar, dataset, count, augment):
    loaded = data.load(data.DataConfig(dataset=dataset, dataset_path=cifar, validation_size=3), seed=0)
    assert [len(split) for split in (loaded.train, loaded.validation, loaded.test)] == [count - 3, 3, 8]
    assert loaded.train.input_shape == (3, 32, 32)
    assert loaded.record["augment"] == augment
    folder = cifar / ("cifar-100-python" if dataset == "cifar100" else "cifar-10-batches-py")
    stored = pickle.loads((folder / ("test" if dataset == "cifar100" else "test_batch")).read_bytes())["data"]
    images = loaded.test.images.permute(0, 3, 1, 2).flatten(1)
    assert torch.equal(images, torch.from_numpy(stored))


def test_the_customary_number_of_held_out_examples_may_be_too_large(cifar):
    with pytest.raises(ValueError, match=r"data\.validation_size 5000 leaves none of the 40"):
        data.load(data.DataConfig(dataset="cifar10", dataset_path=cifar), seed=0)


def test_a_damaged_cifar_file_is_named(cifar):
    path = cifar / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(data.DataError, match=r"cifar-10-batches-py/data_batch_3 is damaged"):
        data.load(data.DataConfig(dataset="cifar10", dataset_path=cifar, validation_size=3), seed=0)


@needs_data
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_real_sets_are_whole_and_normalised(name):
    loaded = data.load(data.DataConfig(dataset=name, target_size=32), seed=0)
    assert [len(split) for split in (loaded.train, loaded.validation, loaded.test)] == [55000, 5000, 10000]
    assert loaded.train.input_shape == (1, 32, 32)
    images, _ = next(loaded.train.in_order(5000))
    assert images.std() == pytest.approx(1, abs=0.1)
