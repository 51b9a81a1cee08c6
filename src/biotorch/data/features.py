"""Features that are no images: numbers and categories, prepared with figures of the training split alone."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from biotorch.data.splits import Kind, Split, Task
from biotorch.errors import DataError

#: Codes of a category that is missing. A code of at least the number of categories is a category that is not listed.
MISSING = -1
#: Numbers that are handled at once, which bounds the memory of a preparation besides its result.
_CHUNK = 2**20

Numbers = NDArray[np.floating[Any]]


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureSplit(Split):
    """Prepared features (N, *shape) float32 with their labels, on the device of the training."""

    inputs: Tensor
    labels: Tensor

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.inputs.shape[1:])

    def to(self, device: torch.device) -> FeatureSplit:
        return FeatureSplit(self.inputs.to(device), self.labels.to(device))

    def batches(self, parts: Iterable[Tensor], augmentation: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        for part in parts:
            index = part.to(self.labels.device)
            yield self.inputs[index], self.labels[index]


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Examples as a file has them.

    Attributes:
        numbers: (N, *shape); NaN where a value is missing.
        codes: (N, q) int64, for each of q columns the index of the example's category.
        labels: (N,) or (N, T) int64 for classes, (N, k) float64 for a regression.
    """

    numbers: Numbers
    codes: NDArray[np.int64]
    labels: Tensor

    def __getitem__(self, index: Tensor) -> Rows:
        return Rows(self.numbers[index.numpy()], self.codes[index.numpy()], self.labels[index])

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that is known of each example, as bytes (N, ...)."""
        parts = [part.reshape(len(self.labels), -1) for part in (self.numbers, self.codes) if part.size]
        return *(torch.from_numpy(np.ascontiguousarray(part).view(np.uint8)) for part in parts), self.labels


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """All examples of a source that has no images. It is kept for the next experiment, so it must not be changed.

    Attributes:
        name: file or name of the data, for messages.
        numbers: names of the columns of numbers; empty for arrays, whose features have no names.
        categories: names of the categories of each column that has any, in the order of their codes.
        num_outputs: number of classes, or of target columns.
        record: further entries of results.json.
    """

    kind: Kind
    name: str
    train: Rows
    test: Rows
    num_outputs: int
    numbers: tuple[str, ...] = ()
    categories: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Preparation:
    """Preparation of the examples of every split; all of it is measured on the training split.

    Numbers get a mean of 0 and a standard deviation of 1, unless `standardise` is off; missing ones become the mean. A
    number that is the same in all training examples becomes 0 in every split, as nothing can be learned of another
    value. A category becomes a row of zeros with a 1 at its code. The row of a category that no training example has is
    zero, and a missing category becomes the most frequent one.

    Attributes:
        mean, std: (1, ...), broadcast over numbers (N, *shape); see `axes`.
        counts: for each column of categories the number of training examples (number of categories,) of each.
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    counts: tuple[NDArray[np.int64], ...]
    standardise: bool

    @classmethod
    def measured(cls, rows: Rows, pool: Features, standardise: bool) -> Preparation:
        """Measure the training split. Raises DataError if a column has no value in it, or too large ones."""
        mean, std = _moments(rows.numbers)
        if not np.isfinite(mean).all() or not np.isfinite(std).all():
            bad = np.flatnonzero(~np.isfinite(mean + std).ravel())[0]
            column = repr(pool.numbers[bad]) if pool.numbers else f"feature {bad}"
            why = "has no value in the training split" if np.isnan(mean.ravel()[bad]) else "has too large values"
            raise DataError(f"{pool.name}: {column} {why}: leave it out.")
        counts = []
        for codes, (name, names) in zip(rows.codes.T, pool.categories.items(), strict=True):
            known = codes[(codes != MISSING) & (codes < len(names))]
            if not len(known):
                raise DataError(f"{pool.name}: {name!r} has no value in the training split: leave it out.")
            counts.append(np.bincount(known, minlength=len(names)))
        return cls(mean, std, tuple(counts), standardise)

    def __call__(self, rows: Rows) -> Tensor:
        """Prepare examples: numbers (N, *shape), or of a table numbers followed by categories (N, d), float32."""
        prepared = np.empty(rows.numbers.shape, np.float32)
        scale = np.divide(1, self.std, out=np.zeros_like(self.std), where=self.std > 0)
        for part in _chunks(rows.numbers):
            numbers = rows.numbers[part].astype(np.float64)
            numbers = np.where(np.isnan(numbers), self.mean, numbers)
            prepared[part] = (numbers - self.mean) * scale if self.standardise else numbers
        blocks = [self._indicators(codes, counts) for codes, counts in zip(rows.codes.T, self.counts, strict=True)]
        return torch.from_numpy(np.concatenate([prepared, *blocks], axis=1) if blocks else prepared)

    @staticmethod
    def _indicators(codes: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.float32]:
        codes = np.where(codes == MISSING, counts.argmax(), codes)
        known = np.append(counts > 0, False)  # the last is for categories that are not listed
        codes = np.minimum(codes, len(counts))
        rows: NDArray[np.float32] = np.eye(len(known), len(counts), dtype=np.float32) * known[:, None]
        return rows[codes]

    def digest(self, pool: Features) -> str:
        """Digest of all that turns a file's columns into inputs, names included."""
        names = json.dumps([pool.numbers, dict(pool.categories), pool.record.get("class_names"), self.standardise])
        content = hashlib.blake2b(names.encode(), digest_size=16)
        if self.standardise or pool.kind == "table":  # other features are left as they are, whatever their mean is
            for values in (self.mean, self.std, *self.counts):
                content.update(values.tobytes())
        return content.hexdigest()


def axes(dimensions: int) -> tuple[int, ...]:
    """Axes over which a mean is taken: all but the last of (N, d) and (N, T, d), all but the second of (N, C, H, ...).

    The last axis of a sequence holds its features; with more axes the second holds the channels, as torch's
    convolutions have it.
    """
    kept = dimensions - 1 if dimensions < 4 else 1
    return tuple(axis for axis in range(dimensions) if axis != kept)


def _chunks(numbers: Numbers) -> Iterator[slice]:
    rows = max(1, _CHUNK // max(1, int(np.prod(numbers.shape[1:]))))
    return (slice(start, start + rows) for start in range(0, len(numbers), rows))


def _moments(numbers: Numbers) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of the known numbers; the deviation of a constant is exactly 0."""
    over = axes(numbers.ndim)
    shape = tuple(1 if axis in over else size for axis, size in enumerate(numbers.shape))
    count, total, squares = (np.zeros(shape) for _ in range(3))
    low, high = np.full(shape, np.inf), np.full(shape, -np.inf)
    with np.errstate(invalid="ignore", over="ignore"):
        for part in _chunks(numbers):
            values = numbers[part].astype(np.float64)
            count += (~np.isnan(values)).sum(over, keepdims=True)
            total += np.nansum(values, over, keepdims=True)
            low = np.minimum(low, np.fmin.reduce(values, over, keepdims=True, initial=np.inf))
            high = np.maximum(high, np.fmax.reduce(values, over, keepdims=True, initial=-np.inf))
        mean = np.where(low == high, low, total / count)
        for part in _chunks(numbers):
            squares += np.nansum((numbers[part].astype(np.float64) - mean) ** 2, over, keepdims=True)
        return mean, np.where(low == high, 0, np.sqrt(squares / count))


@dataclasses.dataclass(frozen=True)
class Scale:
    """Mean and standard deviation (k,) of the targets of a regression in the training split; empty for classes."""

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @property
    def task(self) -> Task:
        """Whether the labels are classes, or numbers."""
        return "regression" if self.mean else "classification"

    @property
    def record(self) -> dict[str, Any]:
        """Entries of results.json; none for classes."""
        mean, std = list(self.mean), list(self.std)
        return {"task": self.task, "target_mean": mean, "target_std": std} if mean else {}

    @classmethod
    def measured(cls, labels: Tensor, name: str, targets: tuple[str, ...] = ()) -> Scale:
        """Measure the training labels. Raises DataError if a target is the same in all of them, or too large."""
        if not labels.is_floating_point():
            return cls()
        mean, std = (moment.ravel() for moment in _moments(labels.numpy()))
        for index in np.flatnonzero(~((std > 0) & np.isfinite(std))):
            target = repr(targets[index]) if targets else str(index)
            why = f"is {mean[index]:.6g} in all examples of the training split, so there is nothing to predict"
            raise DataError(f"{name}: target {target} {'has too large values' if std[index] else why}.")
        return cls(tuple(mean.tolist()), tuple(std.tolist()))

    def __call__(self, labels: Tensor) -> Tensor:
        """Standardise targets (N, k) to float32; labels of classes stay as they are."""
        if not labels.is_floating_point():
            return labels
        mean, std = (torch.tensor(each, dtype=torch.float64) for each in (self.mean, self.std))
        return ((labels.double() - mean) / std).float()


def _text(value: Any) -> str:
    """Name of a category: 1 and 1.0 are one, because a column of integers that lacks a value is read as floats."""
    if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool):
        return str(int(value)) if float(value).is_integer() else str(value)
    return str(value)


def names_of(column: Any) -> tuple[str, ...]:
    """Names of the categories of a pandas.Series, sorted by their value."""
    values = list(column.dropna().unique())
    key = str if any(isinstance(value, str) for value in values) else None
    return tuple(_text(value) for value in sorted(values, key=key))


def codes(column: Any, names: tuple[str, ...]) -> NDArray[np.int64]:
    """Index in `names` of each value (N,), `MISSING`, or the number of names for a value that is not among them."""
    import pandas

    found, values = pandas.factorize(column)
    index = {name: code for code, name in enumerate(names)}
    # For a missing value pandas gives -1, which takes the last.
    taken: NDArray[np.int64] = np.array([*(index.get(_text(value), len(names)) for value in values), MISSING])[found]
    return taken
