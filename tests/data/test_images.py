"""Batches and augmentation in memory: right pixels, and for each example what its seed and index say."""

import numpy as np
import pytest
import torch
from data_cases import together, untouched_randomness

from biotorch import _seeding, data
from biotorch.data.images import Normalisation
from biotorch.data.splits import MemorySplit


def one_by_one(count):
    return torch.arange(count).split(1)


def coloured(count=24, height=6, width=5, augmentation=None):
    """A split of random images, so that no two windows of them are alike."""
    pixels = torch.randint(256, (count, height, width, 3), dtype=torch.uint8, generator=_seeding.generator(1))
    normalisation = Normalisation((0.5, 0.4, 0.3), (0.2, 0.3, 0.1))
    return MemorySplit.of(pixels, torch.arange(count) % 10, normalisation, augmentation)


def test_batches_follow_their_parts_and_are_normalised():
    split = coloured()
    parts = [torch.tensor([3, 1]), torch.tensor([7]), torch.tensor([0, 0, 23])]
    batches = list(split.batches(parts))
    for (images, labels), part in zip(batches, parts, strict=True):
        assert images.dtype == torch.float32
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert images.shape == (len(part), *split.input_shape)
        expected = (split.images[part].double() / 255 - torch.tensor(split.normalisation.mean)) / torch.tensor(
            split.normalisation.std
        )
        torch.testing.assert_close(images.double(), expected.permute(0, 3, 1, 2), atol=1e-5, rtol=0)
        assert torch.equal(labels, split.labels[part])


def test_batches_of_a_real_set_are_normalised_and_in_order_gives_all():
    split = data.load(data.DataConfig(dataset="digits"), seed=0).train
    images, labels = together(split.in_order(100))
    assert torch.equal(labels, split.labels)
    assert abs(images.mean()) < 0.1
    assert images.std() == pytest.approx(1, abs=0.1)


def windows(image, crop, flip):
    """Every outcome of the augmentation of one image (H, W, C), slowly."""
    height, width, channels = image.shape
    padded = np.zeros((height + 2 * crop, width + 2 * crop, channels), dtype=np.uint8)
    padded[crop : crop + height, crop : crop + width] = image
    places = [(y, x) for y in range(2 * crop + 1) for x in range(2 * crop + 1)]
    cut = [padded[y : y + height, x : x + width] for y, x in places]
    return torch.tensor(np.stack(cut + [window[:, ::-1] for window in cut] * flip))


@pytest.mark.parametrize("crop", [0, 1, 4])
@pytest.mark.parametrize("flip", [False, True])
def test_augmented_images_are_windows_of_their_own_image_and_every_window_occurs(crop, flip):
    split = coloured(count=5, augmentation=data.Augmentation(crop=crop, flip=flip))
    outcomes = [split.normalisation(windows(image.numpy(), crop, flip)) for image in split.images]
    found = [set() for _ in outcomes]
    for seed in range(8 * len(outcomes[0])):
        images, _ = next(split.batches([torch.arange(5)], seed))
        for image, possible, seen in zip(images, outcomes, found, strict=True):
            (match,) = (possible == image).flatten(1).all(1).nonzero().flatten().tolist()
            seen.add(match)
    assert all(len(seen) > 0.95 * len(possible) for seen, possible in zip(found, outcomes, strict=True))


def test_every_example_of_a_batch_has_a_fate_of_its_own():
    plain = coloured(count=1)
    split = MemorySplit.of(
        plain.images.expand(500, -1, -1, -1), torch.zeros(500), plain.normalisation, data.Augmentation(crop=1)
    )
    images, _ = next(split.batches([torch.arange(500)], 1))
    counts = images.flatten(1).unique(dim=0, return_counts=True)[1]
    assert len(counts) == 18
    assert counts.max() < 3 * counts.min()


@pytest.mark.parametrize("deterministic", [False, True])
def test_what_becomes_of_an_example_follows_from_the_seed_and_its_index_alone(deterministic):
    split = coloured(augmentation=data.Augmentation())
    torch.use_deterministic_algorithms(deterministic)
    try:
        whole, labels = together(split.batches([torch.arange(24)], 5))
        one, _ = together(split.batches(one_by_one(24), 5))
        order = torch.randperm(24)
        shuffled, shuffled_labels = together(split.batches(order.split(7), 5))
        rank, _ = together(split.batches([part[1::2] for part in order.split(8)], 5))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(one, whole)
    assert torch.equal(shuffled, whole[order])
    assert torch.equal(shuffled_labels, labels[order])
    assert torch.equal(rank, whole[order.view(3, 8)[:, 1::2].flatten()])
    other, _ = together(split.batches([torch.arange(24)], 6))
    assert (other != whole).flatten(1).any(1).float().mean() > 0.9


def test_without_a_seed_an_augmented_split_is_plain_and_without_augmentation_a_seed_is_ignored():
    plain, _ = together(coloured().in_order(5))
    split = coloured(augmentation=data.Augmentation())
    assert torch.equal(together(split.in_order(7))[0], plain)
    assert torch.equal(split.images, coloured().images)
    assert torch.equal(together(coloured().batches([torch.arange(24)], 3))[0], plain)


def test_no_global_generator_is_drawn_from():
    with untouched_randomness():
        split = data.load(data.DataConfig(dataset="digits", augment=True), seed=0).train
        next(split.batches(one_by_one(3), 1))
        next(split.in_order(3))


@pytest.mark.parametrize(
    ("augment", "record"),
    [
        (None, None),
        (False, None),
        (True, {"crop": 4, "flip": True}),
        ({"flip": False}, {"crop": 4, "flip": False}),
        ({"crop": 0, "flip": False}, None),
    ],
)
def test_augmentation_is_of_the_training_part_alone(augment, record):
    config = data.DataConfig(dataset="digits", augment=augment)
    loaded = data.load(config, seed=0)
    assert loaded.record["augment"] == record
    changed = []
    for split in (loaded.train, loaded.validation, loaded.test):
        part = [torch.arange(100)]
        (augmented, _), (plain, _) = next(split.batches(part, 1)), next(split.batches(part))
        changed.append(not torch.equal(augmented, plain))
    assert changed == [record is not None, False, False]
