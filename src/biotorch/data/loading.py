"""Loading of the data set of a configuration, split into training, validation and test."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from biotorch import _seeding
from biotorch.data import columns, digests, sources
from biotorch.data.config import DataConfig
from biotorch.data.features import Features, FeatureSplit, Preparation, Scale
from biotorch.data.files import FileSplit
from biotorch.data.folders import locate
from biotorch.data.images import Normalisation
from biotorch.data.npz import Arrays
from biotorch.data.splits import Images, Kind, MemorySplit, Paths, Pool, Split, Task, repeated_rows
from biotorch.data.tables import read_file
from biotorch.data.text import Text, regions
from biotorch.errors import DataError


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set in three parts. No example of `validation` or `test` is in `train`.

    Examples:
        >>> digits = biotorch.data.load(biotorch.data.DataConfig(dataset="digits"), seed=0)
        >>> len(digits.train), len(digits.validation), len(digits.test), digits.input_shape, digits.num_outputs
        (1257, 180, 360, (1, 8, 8), 10)
    """

    train: Split
    validation: Split
    test: Split
    #: Number of classes, or of target columns.
    num_outputs: int
    #: Mean and standard deviation of each channel, for pixels in [0, 1], which normalise the images; empty for others.
    mean: tuple[float, ...]
    std: tuple[float, ...]
    #: Description of the data for results.json, in plain JSON values. `held_out` is a digest of the sorted indices of
    #: the held-out training images, or of the held-out characters of a text; None if nothing is held out. `split_seed`
    #: is the seed of the split; None if nothing is held out, and for a text, which is split by position. `digest` is a
    #: digest of the `files`, each described as in `digests`, and `repeated` tells how many test examples are training
    #: examples, and one pair.
    record: dict[str, Any]
    #: Whether labels are classes, or numbers.
    task: Task = "classification"
    #: Mean and standard deviation of each target on the training split, by which a regression's targets are
    #: standardised; empty for classes.
    target_mean: tuple[float, ...] = ()
    target_std: tuple[float, ...] = ()
    kind: Kind = "images"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of every example: (C, H, W) of an image, (T,) of a text, (d,) of a table, any of features."""
        return self.train.input_shape

    def to(self, device: torch.device) -> Dataset:
        """The same data set on `device`."""
        test = self.test.to(device)
        validation = test if self.validation is self.test else self.validation.to(device)
        return dataclasses.replace(self, train=self.train.to(device), validation=validation, test=test)


def load(config: DataConfig, seed: int, trained: DataConfig | None = None) -> Dataset:
    """Load the data set of a configuration. The choice of the held-out training examples depends only on `seed`.

    Args:
        config: section `data`.
        seed: seed of the choice.
        trained: section of the training, if a trained network is measured on `config`. If the table of the training
            was divided, the rows of `data.test` are measured with the preparation of the same training split.

    Raises FileNotFoundError, which says which file belongs where, if a file is missing and cannot be downloaded.
    Raises DataError if files are damaged or have a wrong form or another kind of data than a setting is for, or if
    data.validation_size or data.sequence_length leaves no example to train on.

    Examples:
        >>> biotorch.data.load(biotorch.data.DataConfig(dataset="wine"), seed=0).task
        'classification'
    """
    found = sources.read(config.dataset, config.folder, config.target_size, config.check_contents)
    if problems := config.misplaced({found.pool.kind}):
        raise DataError("; ".join(f"data.{key}: {text}" for key, text in problems.items()))
    test, files = _other_test(config), found.files
    dataset = _divided(found.pool, test, config, seed, (trained or config).test is None)
    files = files | _described(test)
    record = {
        "repeated": found.repeated and found.repeated._asdict(),
        **dataset.record,
        **({"classes": dataset.num_outputs} if dataset.task == "classification" else {}),
        "input_shape": list(dataset.input_shape),
        "digest": digests.whole(files),
        "files": files,
    }
    if (repeated := record["repeated"]) is not None and (config.dataset not in sources.available() or test is not None):
        warnings.warn(
            f"{config.dataset}: {repeated['number']} of the {len(dataset.test)} test examples are equal to training "
            f"examples, so that the test figures may be too good; for example, {repeated['test']} of the test is "
            f"{repeated['train']} of the training set",
            stacklevel=2,
        )
    return dataclasses.replace(dataset, record=record)


def misread(then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Reason why a network that was trained on the data of one record would misread those of another, or None.

    The clause, whose subject is the network, compares what outputs and inputs stand for, which follows from the
    training split, but not the examples themselves.

    Examples:
        >>> both = [biotorch.data.DataConfig(dataset=name) for name in ("digits", "wine")]
        >>> biotorch.data.misread(*(biotorch.data.load(each, seed=0).record for each in both))
        "was trained for 10 classes, but data.dataset 'wine' has 3 classes"
    """
    name = f"data.dataset {now.get('dataset')!r}"
    told = digests.outputs(then), digests.outputs(now)
    if None not in told and told[0] != told[1]:
        return f"was trained for {told[0]}, but {name} has {told[1]}"
    units = [[each.get(key) for key in ("target_mean", "target_std")] for each in (then, now)]
    if units[0] != units[1]:
        mean, std = units[0]
        return (
            f"was trained for targets of mean {mean} and standard deviation {std}, but {name} has mean {units[1][0]} "
            f"and standard deviation {units[1][1]}, so its targets are in other units"
        )
    if then.get("characters") != now.get("characters"):
        return (
            f"was trained on the characters {then.get('characters')!r}, but {name} has the characters "
            f"{now.get('characters')!r}"
        )
    if then.get("preparation") != now.get("preparation"):
        return (
            f"was trained on inputs that were made in another way than those of {name}: columns, categories, or the "
            "means of the training split differ"
        )
    return None


def describe(config: DataConfig) -> dict[str, Any]:
    """Part of the record that follows from the files alone, which are not decoded.

    Raises FileNotFoundError if the data set is not on this machine; nothing is downloaded.

    Examples:
        >>> list(biotorch.data.describe(biotorch.data.DataConfig(dataset="digits"))["files"])
        ['digits.npz']
    """
    files = sources.describe(config.dataset, config.folder, config.check_contents)
    return {"files": files | _described(_other_test(config))}


def require_present(config: DataConfig) -> None:
    """Download the data set if needed. Raises FileNotFoundError if it is not on this machine afterwards.

    Examples:
        >>> biotorch.data.require_present(biotorch.data.DataConfig(dataset="digits"))  # else FileNotFoundError
    """
    sources.require_present(config.dataset, config.folder)
    _other_test(config)


def _other_test(config: DataConfig) -> Path | None:
    """The file of `data.test` with the test rows of a table, if given. Raises FileNotFoundError if it is not there."""
    return None if config.test is None else locate(config.test, config.folder, "data.test")


def _described(test: Path | None) -> digests.Files:
    return {} if test is None else digests.of_files(digests.stamps({f"test/{test.name}": test}))


def _divided(found: sources.Whole, test: Path | None, config: DataConfig, seed: int, divided: bool) -> Dataset:
    if isinstance(found, Text):
        return _text(found, config)
    if isinstance(found, Pool):
        return _images(found, config, seed)
    if isinstance(found, Arrays):
        return _features(found.features(config.task), config, seed)
    rows = None if test is None else read_file(test)
    return _features(columns.features(found, rows, config.roles, divided or rows is None), config, seed)


def _text(text: Text, config: DataConfig) -> Dataset:
    on_test = config.validation == "test"
    train, validation, test = regions(text, config.window, config.validation_size, on_test)
    start = len(train.characters)
    held_out = None if on_test else torch.arange(start, start + len(validation.characters))
    record = _record(config, train, validation, test, held_out, seed=None)
    record |= {"sequence_length": config.window, "vocabulary": len(text.vocabulary), "characters": text.vocabulary}
    return Dataset(train, validation, test, len(text.vocabulary), (), (), record, kind=text.kind)


def _images(pool: Pool, config: DataConfig, seed: int) -> Dataset:
    rest, held_out = _held_out(len(pool.train.labels), config, seed)
    kept = pool.train if rest is None else pool.train[rest]
    scale = Scale.measured(kept.labels, config.dataset)
    test = _split(pool.test, pool.normalisation, scale, config)
    validation = test if held_out is None else _split(pool.train[held_out], pool.normalisation, scale, config)
    train = _split(kept, pool.normalisation, scale, config, train=True)
    record = _record(config, train, validation, test, held_out, None if held_out is None else seed) | scale.record
    mean, std = pool.normalisation.mean, pool.normalisation.std
    return Dataset(
        train, validation, test, pool.num_outputs, mean, std, record, scale.task, scale.mean, scale.std, pool.kind
    )


def _features(pool: Features, config: DataConfig, seed: int) -> Dataset:
    rest, held_out = _held_out(len(pool.train.labels), config, seed)
    kept = pool.train if rest is None else pool.train[rest]
    scale = Scale.measured(kept.labels, pool.name, tuple(pool.record.get("targets", ())))
    prepare = Preparation.measured(kept, pool, config.standardise)
    train, test = (FeatureSplit(prepare(rows), scale(rows.labels)) for rows in (kept, pool.test))
    validation = test
    if held_out is not None:
        rows = pool.train[held_out]
        validation = FeatureSplit(prepare(rows), scale(rows.labels))
    record = _record(config, train, validation, test, held_out, None if held_out is None else seed)
    repeated = repeated_rows(pool.train.tensors, pool.test.tensors)
    record |= {
        **pool.record,
        **scale.record,
        "preparation": prepare.digest(pool),
        "repeated": repeated and repeated._asdict(),
    }
    return Dataset(
        train, validation, test, pool.num_outputs, (), (), record, scale.task, scale.mean, scale.std, pool.kind
    )


def _held_out(count: int, config: DataConfig, seed: int) -> tuple[Tensor | None, Tensor | None]:
    """Indices of the training and of the held-out examples of `count`; None and None if the test set validates."""
    if config.validation == "test":
        return None, None
    order = torch.randperm(count, generator=_seeding.generator(_seeding.derive(seed, "validation split")))
    held_out, rest = torch.tensor_split(order, [_validation_size(config, count)])
    return rest, held_out


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


def _split(
    examples: Images | Paths, normalisation: Normalisation, scale: Scale, config: DataConfig, train: bool = False
) -> Split:
    augmentation = config.augmentation if train else None
    if isinstance(examples, Images):
        return MemorySplit.of(examples.pixels, scale(examples.labels), normalisation, augmentation)
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
