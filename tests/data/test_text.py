"""Texts: windows, regions by position, the vocabulary, and what is refused."""

import json
import os

import pytest
import torch

from biotorch import data
from biotorch.data import sources
from biotorch.errors import SectionError


def load(path, seed=0, **config):
    return data.load(data.DataConfig(dataset=f"text:{path}", **config), seed)


def unique(count):
    """A text in which no character stands twice, so that a character is its position; without surrogates."""
    return "".join(map(chr, range(0x10000, 0x10000 + count)))


@pytest.fixture
def positions(tmp_path):
    """1,000 characters; character i of the text has the code i."""
    path = tmp_path / "unique.txt"
    path.write_text(unique(1000), encoding="utf-8")
    return path


def everything(split):
    """All inputs and labels of a split, as sets of characters."""
    inputs, labels = next(split.in_order(len(split)))
    return set(inputs.flatten().tolist()), set(labels.flatten().tolist())


def test_a_window_and_its_labels_are_the_text_and_the_text_shifted_by_one(tmp_path):
    text = "to be, or not to be" * 10
    (tmp_path / "be.txt").write_text(text)
    loaded = load(tmp_path / "be.txt", sequence_length=7)
    vocabulary = sorted(set(text))
    assert loaded.num_outputs == len(vocabulary)
    assert loaded.record["vocabulary"] == len(vocabulary)
    assert loaded.record["characters"] == "".join(vocabulary)
    assert loaded.input_shape == loaded.train.input_shape == (7,)
    (inputs, labels), *_ = loaded.train.in_order(1000)
    assert inputs.dtype == labels.dtype == torch.int64
    assert inputs.shape == labels.shape == loaded.train.labels.shape
    for index in range(len(loaded.train)):
        said = "".join(vocabulary[code] for code in inputs[index])
        asked = "".join(vocabulary[code] for code in labels[index])
        assert said == text[7 * index : 7 * index + 7]
        assert asked == text[7 * index + 1 : 7 * index + 8]


def test_a_batch_is_what_its_indices_say(positions):
    train = load(positions, sequence_length=10).train
    parts = [torch.tensor([3, 0, 88]), torch.tensor([7])]
    for part, (inputs, labels) in zip(parts, train.batches(parts, augmentation=1), strict=True):
        assert torch.equal(inputs, 10 * part[:, None] + torch.arange(10))
        assert torch.equal(labels, inputs + 1)
        assert torch.equal(train.labels[part], labels)


@pytest.mark.parametrize("length", [1, 7, 10, 49])
@pytest.mark.parametrize("config", [{}, {"validation_size": 123}, {"validation": "test"}])
def test_no_character_is_in_two_parts_and_they_follow_each_other(length, config, positions):
    loaded = load(positions, sequence_length=length, **config)
    on_test = config.get("validation") == "test"
    held_out = 0 if on_test else config.get("validation_size", 50)
    regions = {"train": (0, 950 - held_out), "validation": (950 - held_out, 950), "test": (950, 1000)}
    if on_test:
        assert loaded.validation is loaded.test
        del regions["validation"]
    for name, (start, end) in regions.items():
        split = getattr(loaded, name)
        assert len(split) == (end - start - 1) // length == loaded.record[name]
        inputs, labels = everything(split)
        used = len(split) * length
        assert inputs == set(range(start, start + used))
        assert labels == set(range(start + 1, start + used + 1))
        assert max(labels) < end


def test_the_split_is_by_position_whatever_the_seed(positions):
    first, second = (load(positions, seed=seed, sequence_length=5).record for seed in (0, 1))
    assert first == second
    assert first["split_seed"] is None
    assert first["validation_from"] == "training set"
    assert first["held_out"] not in (None, load(positions, sequence_length=5, validation_size=49).record["held_out"])
    assert first["held_out"] == load(positions, sequence_length=6).record["held_out"]
    assert load(positions, sequence_length=5, validation="test").record["held_out"] is None
    assert json.loads(json.dumps(first)) == first


def test_the_default_window_has_128_characters(tmp_path):
    (tmp_path / "long.txt").write_text("ab" * 2000)
    loaded = load(tmp_path / "long.txt")
    assert loaded.input_shape == (128,)
    assert loaded.record["sequence_length"] == 128


def test_line_ends_and_any_script_are_kept(tmp_path):
    text = "é日\r\n\U0001f600 " * 50
    (tmp_path / "any.txt").write_bytes(text.encode())
    loaded = load(tmp_path / "any.txt", sequence_length=4)
    assert loaded.record["characters"] == "\n\r é日\U0001f600"
    inputs, _ = next(loaded.train.in_order(1))
    assert "".join(loaded.record["characters"][code] for code in inputs[0]) == text[:4]


def test_a_file_is_read_once_until_it_changes(positions):
    def kept():
        return sources.read(f"text:{positions}", positions.parent, None).pool

    first = kept()
    assert kept() is first
    positions.write_text(unique(900), encoding="utf-8")
    os.utime(positions, (1, 1))
    assert len(kept().characters) == 900


def test_a_relative_path_starts_at_the_folder_of_data(positions):
    assert load(positions.name, sequence_length=5, dataset_path=positions.parent).num_outputs == 1000


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", r"odd\.txt holds no characters, .* Take another text"),
        (b"a", r"odd\.txt holds only the character 'a'"),
        (b"aaaa" * 100, r"odd\.txt holds only the character 'a'"),
        ("é".encode("latin-1") * 300, r"odd\.txt is not a text in UTF-8 \(see byte 0\): convert it"),
        (b"ab", r"odd\.txt: 0 of its 2 characters are for the test, .* needs 9: take a longer text"),
        (b"ab" * 60, r"odd\.txt: 6 of its 120 characters are for the test"),
    ],
)
def test_a_file_that_is_no_text_or_too_short_is_told(content, told, tmp_path):
    (tmp_path / "odd.txt").write_bytes(content)
    with pytest.raises(data.DataError, match=told):
        load(tmp_path / "odd.txt", sequence_length=8)


@pytest.mark.parametrize(("size", "part"), [(945, "training"), (5000, "training"), (5, "validation")])
def test_a_validation_size_that_leaves_nothing_is_told(size, part, positions):
    with pytest.raises(data.DataError, match=rf"characters are for {part}, .* or another data\.validation_size"):
        load(positions, sequence_length=5, validation_size=size)


def test_a_folder_and_a_path_that_is_not_there_are_told(tmp_path):
    with pytest.raises(data.DataError, match="cannot be read as a text: Is a directory"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt"):
        load("nowhere.txt")


@pytest.mark.parametrize(
    ("given", "key", "told"),
    [
        ({"dataset": "text:a", "target_size": 32}, "target_size", "a setting of images, but text:a is a text"),
        ({"dataset": "text:a", "augment": True}, "augment", "text:a is a text: leave it out"),
        ({"dataset": "text:a", "skip_corrupt": True}, "skip_corrupt", "text:a is a text: leave it out"),
        ({"dataset": "text:a", "standardise": False}, "standardise", "tables .* and float features .*text:a is a text"),
        ({"dataset": "digits", "sequence_length": 64}, "sequence_length", "digits has images: leave it out"),
        ({"dataset": "folder:a", "target": "y"}, "target", r"tables \(table:<path>\), but folder:a has images"),
        ({"dataset": "digits", "task": "regression"}, "task", "digits has images: leave it out"),
        ({"dataset": "wine", "target_size": 32}, "target_size", "wine is a table: leave it out"),
        ({"dataset": "table:a.csv", "target": "y", "augment": {"flip": True}}, "augment", "table:a.csv is a table"),
        ({"dataset": "a.npz", "ignore": ["b"]}, "ignore", "a.npz has float features or has images: leave it out"),
        ({"dataset": "a.npz", "sequence_length": 8}, "sequence_length", "a setting of texts"),
    ],
)
def test_settings_of_another_kind_are_refused(given, key, told):
    with pytest.raises(ValueError, match=told) as caught:
        data.DataConfig(**given)
    (problem,) = caught.value.errors()
    inner = problem["ctx"]["error"]
    assert isinstance(inner, SectionError)
    assert inner.problems.keys() == {key}


def test_augmentation_that_is_off_is_no_setting_of_images():
    assert data.DataConfig(dataset="text:a", augment=False).augmentation is None
