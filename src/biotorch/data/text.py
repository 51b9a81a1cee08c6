"""Text files as data sets, in which a network predicts each character from the characters before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from biotorch import _memory
from biotorch.data.folders import locate
from biotorch.data.splits import Kind, Split
from biotorch.errors import DataError

#: A text has this many equal parts; one is for the test and, by default, one for validation.
_PARTS = 20
#: Bytes of memory that reading takes for each byte of the file: the text twice, its codes, sorted, and its numbers.
_TAKEN = 40


@dataclasses.dataclass(frozen=True, eq=False)
class Text:
    """A whole text file. It is kept for the next experiment on the same data, so it must not be changed."""

    path: Path
    #: The different characters of the text, sorted; the number of a character is its index here.
    vocabulary: str
    #: Numbers (L,) int64 of all characters in order.
    characters: Tensor
    kind: ClassVar[Kind] = "text"


@dataclasses.dataclass(frozen=True, eq=False)
class TextSplit(Split):
    """Consecutive windows of a text: characters (n, T), each labelled with the character that follows it.

    An incomplete window at the end is left out.
    """

    #: Numbers (L,) int64 of the characters in order.
    characters: Tensor
    #: Characters T per window.
    length: int
    #: Labels (N, T) int64, a view of `characters`.
    labels: Tensor = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", self._windows(self.characters[1:]))

    @property
    def input_shape(self) -> tuple[int]:
        return (self.length,)

    def to(self, device: torch.device) -> TextSplit:
        return TextSplit(self.characters.to(device), self.length)

    def batches(self, parts: Iterable[Tensor], augmentation: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        inputs = self._windows(self.characters[:-1])
        for part in parts:
            index = part.to(self.characters.device)
            yield inputs[index], self.labels[index]

    def _windows(self, characters: Tensor) -> Tensor:
        return characters.unfold(0, self.length, self.length)


def read_text(path: str, folder: Path, target_size: int | None) -> Text:
    """Read a file in UTF-8 without any change of case, spaces or line ends.

    Raises DataError, which names the file, if it cannot be read or holds fewer than two different characters.
    """
    file = locate(path, folder)
    _memory.require(file.stat().st_size * _TAKEN, f"reading the text {file}")
    try:
        text = file.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file} is not a text in UTF-8 (see byte {error.start}): convert it, for example by "
            "iconv -f latin1 -t utf-8."
        ) from error
    except OSError as error:
        raise DataError(f"{file} cannot be read as a text: {error.strerror}. text:<path> needs one file.") from error
    codes, characters = np.unique(np.frombuffer(text.encode("utf-32-le"), "<u4"), return_inverse=True)
    if len(codes) < 2:
        raise DataError(
            f"{file} holds {'no characters' if not text else f'only the character {text[0]!r}'}, so there is nothing "
            "to predict. Take another text."
        )
    return Text(file, "".join(map(chr, codes)), torch.from_numpy(characters.astype(np.int64)))


def regions(
    text: Text, length: int, validation_size: int | None, validate_on_test: bool
) -> tuple[TextSplit, TextSplit, TextSplit]:
    """Divide a text into training, validation and test, in its order: by default 90, 5 and 5 % of the characters.

    No character is in two regions, neither as input nor as label.

    Args:
        text: the whole text.
        length: characters per window.
        validation_size: characters for validation; default: a twentieth of the text.
        validate_on_test: use the test region for validation, too, and hold out no other.

    Raises:
        DataError: a region is too short for one window.
    """
    count = len(text.characters)
    held_out = 0 if validate_on_test else validation_size or count // _PARTS
    end = count - count // _PARTS
    start = end - held_out
    test = _region(text, "the test", end, count, length)
    train = _region(text, "training", 0, start, length)
    return train, test if validate_on_test else _region(text, "validation", start, end, length), test


def _region(text: Text, name: str, start: int, end: int, length: int) -> TextSplit:
    """Split of the characters from `start` to `end`. Raises DataError if one window with its labels does not fit."""
    if end - start <= length:
        raise DataError(
            f"{text.path}: {max(end - start, 0):,} of its {len(text.characters):,} characters are for {name}, but one "
            f"example with its labels needs {length + 1:,}: take a longer text, a smaller data.sequence_length"
            f"{'' if name == 'the test' else ', or another data.validation_size'}."
        )
    return TextSplit(text.characters[start:end], length)
