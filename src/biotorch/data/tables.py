"""Tables in files: of columns in .csv and .parquet, and of images in parquet, local or from the Hugging Face hub."""

from __future__ import annotations

import collections
import dataclasses
import functools
import io
import os
import re
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from biotorch import _memory
from biotorch._files import naming
from biotorch._names import require
from biotorch.data.folders import locate
from biotorch.data.images import decode, resize
from biotorch.data.splits import Images, Kind, Pool, in_memory, labels
from biotorch.errors import DataError, disk_is_full

#: Names of a test table, in order of preference.
_TESTS = ("test", "validation", "val")
#: Names of a label column, in order of preference.
_LABELS = ("label", "labels", "fine_label")
_SHARD = re.compile(r"-(\d+)-of-(\d+)\.parquet$")
#: Number of rows that are read at once, which bounds the memory for compressed images.
_ROWS = 1000
#: Exceptions that pyarrow raises for damaged files in addition to its own, depending on the place of the damage.
_DAMAGED = (OSError, ValueError, TypeError, LookupError, ArithmeticError, NotImplementedError, MemoryError)
#: Bytes of memory that a table of columns takes for a byte of text, and for a value.
_FOR_TEXT, _FOR_VALUE = 4, 16


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """A whole file. It is kept for the next experiment on the same data, so it must not be changed."""

    name: str
    #: A pandas.DataFrame.
    frame: Any
    kind: ClassVar[Kind] = "table"


def read_table(path: str, folder: Path, target_size: int | None) -> Table:
    """Read a table. Raises DataError, which names the file."""
    return read_file(locate(path, folder))


def read_file(file: Path) -> Table:
    """Read a .csv, .csv.gz or .parquet file. Raises DataError, which names it."""
    readers = {".csv": _csv, ".csv.gz": _csv, ".parquet": _parquet}
    reader = next((reader for suffix, reader in readers.items() if file.name.lower().endswith(suffix)), None)
    if reader is None or not file.is_file():
        raise DataError(f"{file} must be a file whose name ends in {', '.join(readers)}.")
    frame = reader(file)
    if not len(frame):
        raise DataError(f"{file} has no rows.")
    return Table(str(file), frame)


def _csv(file: Path) -> Any:
    import pandas

    size = file.stat().st_size
    if file.name.lower().endswith(".gz") and size > 4:
        with file.open("rb") as packed:
            packed.seek(-4, os.SEEK_END)  # gzip ends with the size of the text
            size = int.from_bytes(packed.read(), "little")
    _memory.require(_FOR_TEXT * size, str(file))
    form = {"skipinitialspace": True, "encoding": "utf-8-sig", "index_col": False}
    try:
        first = pandas.read_csv(file, header=None, nrows=1, dtype=str, keep_default_na=False, **form).iloc[0]
        if all(re.fullmatch(r"[-+.\deE]*\d[-+.\deE]*", name) for name in first):
            raise DataError(f"{file} has no names of columns in its first line: add them.")
        _require_names([name for name in first if name], file)
        with warnings.catch_warnings():
            warnings.simplefilter("error", pandas.errors.ParserWarning)  # rows longer than the first would be cut
            return pandas.read_csv(file, low_memory=False, **form)
    except pandas.errors.ParserWarning as error:
        raise DataError(f"{file} has rows with more values than its first line has names.") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file} is not a text in UTF-8: convert it, for example by iconv -f latin1 -t utf-8."
        ) from error
    except (ValueError, OSError, EOFError, zlib.error) as error:
        if isinstance(error, DataError):
            raise
        why = str(error).strip()
        raise DataError(f"{file} cannot be read as a table of values separated by commas: {why}") from error


def _require_names(names: list[str], file: Path) -> None:
    if len(names) == 1 and (separator := next((each for each in ";\t|" if each in names[0]), None)):
        raise DataError(f"{file} has only the column {names[0]!r}: separate values by commas, not by {separator!r}.")
    if repeated := [name for name, count in collections.Counter(names).items() if count > 1]:
        raise DataError(f"{file} has more than one column of the name {', '.join(map(repr, repeated))}.")


def _parquet(file: Path) -> Any:
    parquet = _extra("pyarrow.parquet")
    try:
        with parquet.ParquetFile(file) as table:
            _require_names(table.schema_arrow.names, file)
            _memory.require(_FOR_VALUE * table.metadata.num_rows * table.metadata.num_columns, str(file))
            # Without pandas' own entries, which would turn columns into an index.
            frame = table.read().to_pandas(ignore_metadata=True)
    except _DAMAGED as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file} is not a complete parquet file: {error}") from error
    return frame[[name for name in frame.columns if not name.startswith("__index_level_")]]


def read_parquet(path: str, folder: Path, target_size: int | None) -> Pool:
    """Read `train*.parquet` and `test*.parquet` in a folder; a column holds compressed images as structs with `bytes`.

    Raises DataError, which names the file and the row or the columns.
    """
    return _read(locate(path, folder), target_size)


def files_of_parquet(path: str, folder: Path, download: bool) -> dict[str, Path]:
    """Parquet files of the training and the test table."""
    train, test = _tables(locate(path, folder))
    return {file.name: file for file in train + test}


def read_hub(name: str, folder: Path, target_size: int | None) -> Pool:
    """Read the parquet files of a data set on the Hugging Face hub, downloading them into `folder` if needed.

    `<name>@<revision>` takes a certain commit or tag instead of the newest.

    Raises FileNotFoundError if the download fails, and DataError as `read_parquet`.
    """
    return _read(_snapshot(name, folder, True), target_size)


def files_of_hub(name: str, folder: Path, download: bool) -> dict[str, Path]:
    """Parquet files of the data set, in the cache of the hub. Raises FileNotFoundError, as `read_hub`."""
    train, test = _tables(_snapshot(name, folder, download))
    return {file.name: file for file in train + test}


@functools.lru_cache(maxsize=8)  # one process asks the hub for the newest commit once, and sees no other later
def _snapshot(name: str, folder: Path, download: bool) -> Path:
    hub, cache = _extra("huggingface_hub"), folder / "huggingface"
    name, _, revision = name.partition("@")
    try:
        with naming(cache):
            found: str = hub.snapshot_download(
                name,
                repo_type="dataset",
                revision=revision or None,
                allow_patterns=["*.parquet"],
                cache_dir=cache,
                local_files_only=not download,
            )
    except (OSError, ValueError) as error:
        if disk_is_full(error):
            raise
        raise FileNotFoundError(
            f"the data set {name!r} is not in {cache} and could not be downloaded from the Hugging Face hub ({error}). "
            "Check the name and the network, or fetch its parquet files elsewhere and set "
            "data.dataset: parquet:<their folder>."
        ) from error
    return Path(found)


def _read(root: Path, target_size: int | None) -> Pool:
    parts = [_decoded(files, target_size) for files in _tables(root)]
    # If any image has colours, all images of both parts become RGB.
    channels = max((image.shape[-1] for images, _ in parts for image in images), default=1)
    train, test = (
        Images(
            _stacked(images, channels, root), labels(np.array(targets, dtype=np.int64), f"the label column in {root}")
        )
        for images, targets in parts
    )
    return in_memory(train, test, target_size, str(root))


def _tables(root: Path) -> tuple[list[Path], list[Path]]:
    """Files of the training and the test table, in the folder, in data/, or in the only subfolder that has any."""
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; parquet:<path> needs the folder that holds train*.parquet.")
    folders = [place for place in (root, root / "data") if any(place.glob("train*.parquet"))][:1]
    folders = folders or sorted({file.parent for file in root.glob("*/train*.parquet")})
    if not folders:
        raise DataError(f"there is no train*.parquet in {root} or in one of its subfolders.")
    if len(folders) > 1:
        raise DataError(f"more than one folder has train*.parquet; give one of them: {', '.join(map(str, folders))}.")
    train = _shards(folders[0], "train")
    for name in _TESTS:
        if test := _shards(folders[0], name):
            return train, test
    raise DataError(f"{folders[0]} has train*.parquet, but neither test*.parquet nor validation*.parquet.")


def _shards(folder: Path, name: str) -> list[Path]:
    """List all files of a table. Raises DataError if there are fewer shards than their names state."""
    files = sorted(folder.glob(f"{name}*.parquet"))
    for file in files:
        if shard := _SHARD.search(file.name):
            stem, count = file.name[: shard.start()], shard[2]
            there = list(folder.glob(f"{stem}-*-of-{count}.parquet"))
            if len(there) != int(count):
                raise DataError(f"{folder} has only {len(there)} of the {int(count)} shards of {stem}.")
    return files


def _decoded(files: list[Path], target_size: int | None) -> tuple[list[NDArray[np.uint8]], list[int]]:
    """Read all images (H, W, C) with 1 or 3 channels, and their labels."""
    images, targets = [], []
    for file in files:
        for row, (encoded, target, rows) in enumerate(_rows(file)):
            if encoded is None or target is None:
                raise DataError(f"row {row} of {file} has no {'image bytes' if encoded is None else 'label'}.")
            if target >= 2**63:
                raise DataError(f"row {row} of {file} must hold the number of a class; found {target}.")
            pixels = np.array(decode(io.BytesIO(encoded), f"row {row} of {file}", keep_grey=True))
            pixels = pixels.reshape(*pixels.shape[:2], -1)
            if target_size is not None:
                # Resized one by one, because all large photographs together would fill the memory.
                pixels = resize(torch.from_numpy(pixels)[None], target_size)[0].numpy()
            if row == 0:  # for a moment they are in memory twice, one by one and stacked
                _memory.require(2 * rows * pixels.nbytes, f"{file} says that it has {rows:,} images, which")
            images.append(pixels)
            targets.append(target)
    return images, targets


def _rows(file: Path) -> Iterator[tuple[bytes | None, int | None, int]]:
    """Encoded image and label of every row, and the number of rows that the file says it has."""
    parquet, damage = _extra("pyarrow.parquet"), (*_DAMAGED, _extra("pyarrow").ArrowException)
    try:
        table = parquet.ParquetFile(file)
    except damage as error:
        raise DataError(f"{file} is not a complete parquet file: {error}") from error
    with table:
        image, label = _columns(table.schema_arrow, file)
        try:
            for batch in table.iter_batches(_ROWS, columns=[f"{image}.bytes", label]):
                for cell, target in zip(batch.column(image).to_pylist(), batch.column(label).to_pylist(), strict=True):
                    yield cell and cell["bytes"], target, table.metadata.num_rows
        except damage as error:
            raise DataError(f"{file} is damaged: {error}") from error


def _columns(schema: Any, file: Path) -> tuple[str, str]:
    """Names of the image and of the label column."""
    types = _extra("pyarrow").types
    images = [
        field.name for field in schema if types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
    ]
    integers = [field.name for field in schema if types.is_integer(field.type)]
    named = [name for name in _LABELS if name in integers][:1] or integers
    if len(images) == 1 and len(named) == 1:
        return images[0], named[0]
    raise DataError(
        f"{file} needs one image column (structs with a field `bytes`) and one label column (integers; if there are "
        f"several such columns, named {', '.join(_LABELS)}); its columns: "
        f"{', '.join(f'{field.name} ({field.type})' for field in schema)}."
    )


def _stacked(images: list[NDArray[np.uint8]], channels: int, root: Path) -> torch.Tensor:
    """Stack images into (N, H, W, C); with 3 `channels`, grey images are repeated over all three."""
    sizes = sorted({image.shape[:2] for image in images})
    if len(sizes) > 1:
        (height, width), (other_height, other_width) = sizes[0], sizes[-1]
        raise DataError(
            f"images in {root} have different sizes, from {height}x{width} to {other_height}x{other_width} "
            "(height x width): set data.target_size."
        )
    stacked = np.empty((len(images), *(sizes[0] if sizes else (0, 0)), channels), dtype=np.uint8)
    for index, image in enumerate(images):
        stacked[index] = image
    return torch.from_numpy(stacked)


def _extra(module: str) -> Any:
    """Import a module of the optional extra. Raises MissingPackageError with the command that installs it."""
    return require(module, "data", "this data set")
