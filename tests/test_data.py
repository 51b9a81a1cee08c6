"""Data sets: clean splits, right pixels, clear errors."""

import os

import pytest
import torch
import torchvision

from biotorch import data

needs_data = pytest.mark.skipif(
    not os.environ.get("BIOTORCH_DATA"), reason="BIOTORCH_DATA names no folder with MNIST and Fashion-MNIST"
)


def rows(split):
    return {bytes(image.flatten().tolist()) for image in split.images}


def test_digits_are_complete_and_nothing_of_the_test_is_trained_on():
    loaded = data.load(data.DataConfig(dataset="digits"), seed=0)
    assert [len(split) for split in (loaded.train, loaded.validation, loaded.test)] == [1257, 180, 360]
    assert loaded.num_classes == 10
    assert loaded.train.images.dtype == torch.uint8
    assert loaded.train.images.max() == 255
    assert not rows(loaded.train) & rows(loaded.test)
    assert not rows(loaded.train) & rows(loaded.validation)


def test_the_test_set_is_the_same_for_every_seed_and_the_validation_set_is_not():
    first, second = (data.load(data.DataConfig(dataset="digits"), seed=seed) for seed in (0, 1))
    assert torch.equal(first.test.images, second.test.images)
    assert rows(first.validation) != rows(second.validation)


def test_validation_on_the_test_set_trains_on_everything_else():
    loaded = data.load(data.DataConfig(dataset="digits", validation="test"), seed=0)
    assert [len(split) for split in (loaded.train, loaded.validation, loaded.test)] == [1437, 360, 360]
    assert torch.equal(loaded.validation.images, loaded.test.images)
    assert not rows(loaded.train) & rows(loaded.test)


def test_batches_are_normalised_shuffled_by_their_generator_and_complete():
    split = data.load(data.DataConfig(dataset="digits"), seed=0).train
    batches = list(split.batches(100, torch.Generator().manual_seed(1)))
    assert sum(len(labels) for _, labels in batches) == len(split)
    images = torch.cat([images for images, _ in batches])
    assert images.dtype == torch.float32
    assert abs(images.mean()) < 0.1
    assert images.std() == pytest.approx(1, abs=0.1)
    again = torch.cat([labels for _, labels in split.batches(100, torch.Generator().manual_seed(1))])
    assert torch.equal(again, torch.cat([labels for _, labels in batches]))
    in_order = torch.cat([labels for _, labels in split.batches(100)])
    assert torch.equal(in_order, split.labels)


def test_images_are_resized_once_to_the_target_size():
    split = data.load(data.DataConfig(dataset="digits", target_size=32), seed=0).train
    assert split.images.shape[1:] == (1, 32, 32)
    assert split.images.dtype == torch.uint8


def test_missing_files_that_cannot_be_downloaded_are_told_where_to_go(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", refuse)
    config = data.DataConfig(dataset="mnist", dataset_path=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"(?s)no network.*MNIST/raw.*BIOTORCH_DATA"):
        data.load(config, seed=0)


@needs_data
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_real_sets_are_whole_and_normalised(name):
    loaded = data.load(data.DataConfig(dataset=name, target_size=32), seed=0)
    assert [len(split) for split in (loaded.train, loaded.validation, loaded.test)] == [55000, 5000, 10000]
    assert loaded.train.images.shape[1:] == (1, 32, 32)
    images, _ = next(loaded.train.batches(5000, torch.Generator().manual_seed(0)))
    assert images.std() == pytest.approx(1, abs=0.1)
