"""Loading of the data set of a configuration, split into training, validation and test."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from typing import Any

import torch
from torch import Tensor

from biotorch import _seeding
from biotorch.data import digests, sources
from biotorch.data.config import DataConfig
from biotorch.data.files import FileSplit
from biotorch.data.images import Normalisation
from biotorch.data.splits import Images, MemorySplit, Paths, Pool, Split
from biotorch.data.text import Text, regions
from biotorch.errors import DataError


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set in three parts. No example of `validation` or `test` is in `train`."""

    train: Split
    validation: Split
    test: Split
    num_classes: int
    #: Mean and standard deviation of each channel, for pixels in [0, 1], which normalise the images; empty for a text.
    mean: tuple[float, ...]
    std: tuple[float, ...]
    #: Description of the data for results.json, in plain JSON values. `held_out` is a digest of the sorted indices of
    #: the held-out training images, or of the held-out characters of a text; None if nothing is held out. `split_seed`
    #: is the seed of the split; None if nothing is held out, and for a text, which is split by position. `digest` is a
    #: digest of the `files`, each described as in `digests`, and `repeated` tells how many test examples are training
    #: examples, and one pair.
    record: dict[str, Any]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of every example: (C, H, W) of an image, (T,) of a text."""
        return self.train.input_shape

    def to(self, device: torch.device) -> Dataset:
        """The same data set on `device`."""
        test = self.test.to(device)
        validation = test if self.validation is self.test else self.validation.to(device)
        return dataclasses.replace(self, train=self.train.to(device), validation=validation, test=test)


def load(config: DataConfig, seed: int) -> Dataset:
    """Load the data set of a configuration. The choice of the held-out training images depends only on `seed`.

    Raises FileNotFoundError, which says which file belongs where, if a file is missing and cannot be downloaded.
    Raises DataError if files are damaged or have a wrong form, or if data.validation_size or data.sequence_length
    leaves no example to train on.
    """
    found = sources.read(config.dataset, config.folder, config.target_size, config.check_contents)
    dataset = _text(found.pool, config) if isinstance(found.pool, Text) else _images(found.pool, config, seed)
    if found.repeated is not None and config.dataset not in sources.available():
        number, *pair = found.repeated
        warnings.warn(
            f"{config.dataset}: {number} of the {len(dataset.test)} test images are training images, too, so that "
            f"the test error is too good; for example, {pair[0]} of the test is {pair[1]} of the training set",
            stacklevel=2,
        )
    record = {
        **dataset.record,
        "classes": dataset.num_classes,
        "input_shape": list(dataset.input_shape),
        "repeated": found.repeated and found.repeated._asdict(),
        "digest": digests.whole(found.files),
        "files": found.files,
    }
    return dataclasses.replace(dataset, record=record)


def describe(config: DataConfig) -> dict[str, Any]:
    """Part of the record that follows from the files alone, which are not decoded.

    Raises FileNotFoundError if the data set is not on this machine; nothing is downloaded.
    """
    return {"files": sources.describe(config.dataset, config.folder, config.check_contents)}


def require_present(config: DataConfig) -> None:
    """Download the data set if needed. Raises FileNotFoundError if it is not on this machine afterwards."""
    sources.require_present(config.dataset, config.folder)


def _text(text: Text, config: DataConfig) -> Dataset:
    on_test = config.validation == "test"
    train, validation, test = regions(text, config.window, config.validation_size, on_test)
    start = len(train.characters)
    held_out = None if on_test else torch.arange(start, start + len(validation.characters))
    record = _record(config, train, validation, test, held_out, seed=None)
    record |= {"sequence_length": config.window, "vocabulary": len(text.vocabulary), "characters": text.vocabulary}
    return Dataset(train, validation, test, len(text.vocabulary), (), (), record)


def _images(pool: Pool, config: DataConfig, seed: int) -> Dataset:
    test = _split(pool.test, pool.normalisation, config)
    if config.validation == "test":
        kept, held_out, validation = pool.train, None, test
    else:
        count = len(pool.train.labels)
        order = torch.randperm(count, generator=_seeding.generator(_seeding.derive(seed, "validation split")))
        held_out, rest = torch.tensor_split(order, [_validation_size(config, count)])
        kept, validation = pool.train[rest], _split(pool.train[held_out], pool.normalisation, config)
    train = _split(kept, pool.normalisation, config, train=True)
    record = _record(config, train, validation, test, held_out, None if held_out is None else seed)
    mean, std = pool.normalisation.mean, pool.normalisation.std
    return Dataset(train, validation, test, pool.num_classes, mean, std, record)


def _record(
    config: DataConfig, train: Split, validation: Split, test: Split, held_out: Tensor | None, seed: int | None
) -> dict[str, Any]:
    """Description of a split for results.json; `seed` is the seed that has chosen the held-out examples."""
    return {
        "dataset": config.dataset,
        "train": len(train),
        "validation": len(validation),
        "test": len(test),
        "validation_from": "test set" if held_out is None else "training set",
        "split_seed": seed,
        "held_out": None if held_out is None else _digest(held_out),
        "augment": _description(config),
    }


def _split(examples: Images | Paths, normalisation: Normalisation, config: DataConfig, train: bool = False) -> Split:
    augmentation = config.augmentation if train else None
    if isinstance(examples, Images):
        return MemorySplit.of(examples.pixels, examples.labels, normalisation, augmentation)
    return FileSplit(
        examples,
        examples.labels,
        normalisation,
        config.side,
        augmented=augmentation is not None,
        num_workers=config.num_workers,
        skip_corrupt=config.skip_corrupt,
    )


def _validation_size(config: DataConfig, count: int) -> int:
    """Number of examples to hold out of `count` training examples."""
    size = config.validation_size or sources.find(config.dataset)[0].validation_size or max(1, round(count / 10))
    if size >= count:
        raise DataError(
            f"data.validation_size {size} leaves none of the {count} training examples of {config.dataset} for "
            f"training: set it to less than {count}."
        )
    return size


def _digest(index: Tensor) -> str:
    """Digest of a set of indices, which depends neither on their order nor on the machine."""
    return hashlib.blake2b(index.sort().values.numpy().astype("<i8").tobytes(), digest_size=16).hexdigest()


def _description(config: DataConfig) -> dict[str, Any] | None:
    if config.augmentation is None:
        return None
    return {"random_resized_crop": config.side, "flip": True} if config.in_files else config.augmentation.model_dump()
