"""Text files, read character by character: each character is to be predicted from those before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from biotorch.data.folders import locate
from biotorch.data.splits import Split
from biotorch.errors import DataError

#: One part in so many of the characters is for the test, and unless told otherwise one for validation.
_PARTS = 20


@dataclasses.dataclass(frozen=True, eq=False)
class Text:
    """A whole file. It is kept for the next experiment on the same data, so nobody may write to it."""

    path: Path
    #: Its different characters, sorted; a character is known by its place among them.
    vocabulary: str
    #: (L,) int64, all of its characters in order.
    characters: Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class TextSplit(Split):
    """Windows of a text, one behind the other: characters (n, T), and as its label the character after each.

    The window after the last whole one is left out.
    """

    #: (L,) int64
    characters: Tensor
    #: T
    length: int
    #: (N, T) int64: a view of `characters`.
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
    """A file in UTF-8, its characters as they are: no case, space or end of line is changed.

    Raises DataError, which names the file, if it cannot be read or holds fewer than two different characters.
    """
    file = locate(path, folder)
    try:
        text = file.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file} is no text in UTF-8 (see byte {error.start}): convert it, such as by iconv -f latin1 -t utf-8."
        ) from error
    except OSError as error:
        raise DataError(f"{file} cannot be read as a text: {error.strerror}. text:<path> takes one file.") from error
    codes, characters = np.unique(np.frombuffer(text.encode("utf-32-le"), "<u4"), return_inverse=True)
    if len(codes) < 2:
        raise DataError(
            f"{file} holds {'no character' if not text else f'no other character than {text[0]!r}'}: there is nothing "
            "to predict. Take another text."
        )
    return Text(file, "".join(map(chr, codes)), torch.from_numpy(characters.astype(np.int64)))


def watched_text(path: str, folder: Path) -> list[Path]:
    """The file."""
    return [locate(path, folder)]


def regions(
    text: Text, length: int, validation_size: int | None, validate_on_test: bool
) -> tuple[TextSplit, TextSplit, TextSplit]:
    """Training, validation and test in the order of the text: 90, 5 and 5 % of its characters.

    No character is in two of them, be it as input or as label.

    Args:
        text: the whole file.
        length: characters of a window.
        validation_size: characters for validation; default: a twentieth.
        validate_on_test: leave validation out, and take the test region for it.

    Raises:
        DataError: a region has not one window.
    """
    count = len(text.characters)
    held_out = 0 if validate_on_test else validation_size or count // _PARTS
    end = count - count // _PARTS
    start = end - held_out
    test = _region(text, "the test", end, count, length)
    train = _region(text, "training", 0, start, length)
    return train, test if validate_on_test else _region(text, "validation", start, end, length), test


def _region(text: Text, name: str, start: int, end: int, length: int) -> TextSplit:
    """The characters from `start` to `end`. Raises DataError if they are less than a window with its labels."""
    if end - start <= length:
        raise DataError(
            f"{text.path}: {max(end - start, 0):,} of its {len(text.characters):,} characters are for {name}, and one "
            f"example with its labels takes {length + 1:,}: take a longer text, a smaller data.sequence_length"
            f"{'' if name == 'the test' else ', or another data.validation_size'}."
        )
    return TextSplit(text.characters[start:end], length)
