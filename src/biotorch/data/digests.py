"""Digests of the files of a data set, what differs between two of them, and repeated files.

A description of files is a mapping in plain JSON values: by name in the data set, the number of `files`, their `bytes`
and one or two digests, of their `contents` or of their names, sizes and `times`. What lies in memory has an entry with
its contents for each file; folders of images have an entry for each class, or, if these are many, for each part.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import os
import stat
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from biotorch.data.splits import Paths, Repeated
from biotorch.errors import DataError

Files = dict[str, dict[str, Any]]
#: Size in bytes, modification time in ns, device and inode of a file; all -1 if there is none.
Identity = tuple[int, int, int, int]

#: Largest number of entries in a description of files.
_ENTRIES = 100


class Stamp(NamedTuple):
    """A file of a data set: its name there, its path, its size in bytes and its modification time in ns."""

    name: str
    path: Path
    size: int
    time: int


def stamps(files: Mapping[str, Path]) -> tuple[Stamp, ...]:
    """Sizes and times of files, which are given by their names in the data set."""
    found = ((name, path, path.stat()) for name, path in files.items())
    return tuple(Stamp(name, path, now.st_size, now.st_mtime_ns) for name, path, now in found)


def require_unchanged(before: Iterable[Stamp]) -> None:
    """Raise DataError if a file has another size or time than `before`, or is gone."""
    for each in before:
        if identity(each.path)[:2] != (each.size, each.time):
            raise changed(each.path)


def changed(path: Path | str) -> DataError:
    """The error for a file that is not the one that it was."""
    return DataError(f"{path} has changed since it was first read: start again when nothing writes to the data.")


def identity(path: Path | str) -> Identity:
    """Size, time and inode of a file, by which a path still leads to the same file, unchanged, or not."""
    try:
        return _numbers(os.stat(path))
    except OSError:
        return -1, -1, -1, -1


def of_entry(entry: os.DirEntry[str]) -> Identity:
    """`identity` of an entry of a folder. Raises DataError for a pipe or a device, whose reading may never end."""
    try:
        found = entry.stat()
    except OSError:  # a link to nowhere
        return -1, -1, -1, -1
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{entry.path} is neither a file nor a folder. Remove it from the data.")
    return _numbers(found)


def _numbers(found: os.stat_result) -> Identity:
    # Devices and inodes may have 64 bits without a sign.
    return found.st_size, found.st_mtime_ns, found.st_dev % 2**63, found.st_ino % 2**63


# Descriptions --------------------------------------------------------------------------------------


def of_files(files: Iterable[Stamp]) -> Files:
    """Describe files by their contents, which are the unpacked ones of a .gz. Raises DataError if this is damaged."""
    found = {each.name: _content(each.path) for each in files}
    return {name: {"files": 1, "bytes": size, "contents": digest} for name, (size, digest) in found.items()}


def of_folders(train: Paths, test: Paths, contents: bool) -> tuple[Files, Repeated | None]:
    """Describe image files by names, sizes and times, with `contents` also by their contents, and find repeated ones.

    A test image is repeated if a training image is the same file by a link or, with `contents`, has equal contents.
    """
    parts, split = (train, test), train.root != test.root  # in a data set without parts, both have one root
    prefixes = [os.fsencode(part.root.name) + b"/" if split else b"" for part in parts]
    names = [prefix + name for prefix, part in zip(prefixes, parts, strict=True) for name in part.paths.tolist()]
    read = [_contents(part) for part in parts] if contents else []
    known = [digest for part in read for digest in part] if contents else None
    files = _by_folder(names, np.concatenate([part.identities for part in parts]), known)
    # Without contents, two files are one if they have one device and inode.
    trained, tested = map(np.array, read) if contents else map(_inodes, parts)
    twice = np.flatnonzero(np.isin(tested, trained) & (test.identities[:, 0] >= 0))
    if not len(twice):
        return files, None
    partner = int(np.flatnonzero(np.isin(trained, tested[twice[0]]))[0])
    return files, Repeated(len(twice), test.full(int(twice[0])), train.full(partner))


def _inodes(part: Paths) -> NDArray[np.void]:
    return part.identities[:, 2:].copy().view("V16")[:, 0]


def _contents(part: Paths) -> list[str]:
    """Digest of the contents of each file, "" for a link to nowhere."""
    return [
        "" if size < 0 else _content(Path(part.full(index)), packed=False)[1]
        for index, size in enumerate(part.identities[:, 0].tolist())
    ]


def _by_folder(names: list[bytes], identities: NDArray[np.int64], contents: list[str] | None) -> Files:
    """Describe files with these names within the data set, for each class or, if these are many, for each part."""
    inner = {name.rpartition(b"/")[0] for name in names}
    for depth in (2, 1, 0):
        places = {folder: os.fsdecode(b"/".join(folder.split(b"/")[:depth])) or "." for folder in inner}
        if len(set(places.values())) <= _ENTRIES:
            break
    found: dict[str, dict[str, Any]] = {}
    numbers = identities[:, :2].tolist()
    for index in sorted(range(len(names)), key=names.__getitem__):
        name, (size, time) = names[index], numbers[index]
        entry = found.setdefault(places[name.rpartition(b"/")[0]], {"files": 0, "bytes": 0, "times": hashlib.sha256()})
        entry["files"] += 1
        entry["bytes"] += max(size, 0)
        # Whole seconds, because archives and many file systems keep no more.
        entry["times"].update(b"%s\0%d\0%d\n" % (name, size, time // 10**9))
        if contents is not None:
            line = b"%s\0%s\n" % (name, contents[index].encode())
            entry.setdefault("contents", hashlib.sha256()).update(line)
    return {
        place: {key: value if isinstance(value, int) else value.hexdigest()[:32] for key, value in entry.items()}
        for place, entry in found.items()
    }


def _content(path: Path, packed: bool = True) -> tuple[int, str]:
    """Number of bytes and digest of a file. Raises DataError if it is a damaged .gz.

    A process reads a file again only if its times or its size have changed.
    """
    now = path.stat()
    return _content_of(path, packed, (now.st_size, now.st_mtime_ns, now.st_ctime_ns))


@functools.lru_cache(maxsize=10_000)
def _content_of(path: Path, packed: bool, state: tuple[int, int, int]) -> tuple[int, str]:
    try:
        with path.open("rb") as file:
            if packed and path.suffix == ".gz":
                with gzip.open(file) as unpacked:
                    return _hashed(unpacked)
            return _hashed(file)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged: {error}.") from error


def _hashed(file: IO[bytes] | gzip.GzipFile) -> tuple[int, str]:
    digest, count = hashlib.sha256(), 0
    while chunk := file.read(2**20):
        digest.update(chunk)
        count += len(chunk)
    return count, digest.hexdigest()[:32]


def whole(files: Files) -> str:
    """One digest of all files, of their contents if these are known. The name of a single file does not count."""
    keys = [next(key for key in ("contents", "times") if key in entry) for entry in files.values()]
    digests = [entry[key] for key, entry in zip(keys, files.values(), strict=True)]
    if len(digests) == 1 and keys == ["contents"]:
        return str(digests[0])
    lines = (f"{name} {digest}\n" for name, digest in sorted(zip(files, digests, strict=True)))
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:32]


# Comparison ----------------------------------------------------------------------------------------


def difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Known differences between the data of two records (`Dataset.record`), in words, or None.

    Records of older versions have no `files`: then the numbers of examples and outputs and their shape are compared.

    Examples:
        >>> both = [biotorch.data.DataConfig(dataset=name) for name in ("digits", "wine")]
        >>> biotorch.data.difference(*(biotorch.data.load(each, seed=0).record for each in both)).split("; ")[1]
        '10 classes then, 3 classes now'
    """
    then, now = (each if isinstance(each, Mapping) else {} for each in (then, now))  # anything may be in a foreign file
    earlier, present = then.get("files"), now.get("files")
    changes = list(_changes(earlier, present)) if earlier and present else []
    if earlier and present and not changes:
        return None
    words = [
        f"{told(then)} then, {told(now)} now"
        for told in (_examples, outputs, _shape)
        if None not in (told(then), told(now)) and told(then) != told(now)
    ]
    if changes:
        words.append(changes[0] + (f", the first of {len(changes)} differences" if changes[1:] else ""))
    return "; ".join(words) or None


def without_test(record: Mapping[str, Any]) -> dict[str, Any]:
    """Part of a record that a network is trained on: without the files and the number of the test examples.

    Test examples have files of their own in `folder:` data with test/ and for a table with `data.test`.

    Examples:
        >>> record = biotorch.data.load(biotorch.data.DataConfig(dataset="digits"), seed=0).record
        >>> sorted(record.keys() - biotorch.data.without_test(record).keys())
        ['test']
    """
    files = {name: entry for name, entry in (record.get("files") or {}).items() if not name.startswith("test/")}
    return {key: value for key, value in record.items() if key not in ("files", "test")} | {"files": files}


def _changes(then: Files, now: Files) -> Iterator[str]:
    if len(then) == len(now) == 1:  # a file may have another name
        then = dict(zip(now, then.values(), strict=True))
    for name in {**then, **now}:
        if name not in now:
            yield f"{name} is gone"
        elif name not in then:
            yield f"{name} is new"
        else:
            key = next((key for key in ("contents", "times") if key in then[name] and key in now[name]), None)
            if key is not None and then[name][key] != now[name][key]:
                yield f"{name} {_change(then[name], now[name], key)}"


def _change(then: dict[str, Any], now: dict[str, Any], key: str) -> str:
    if then["files"] != now["files"]:
        return f"had {then['files']} files then, {now['files']} now"
    if then["bytes"] != now["bytes"]:
        return f"had {then['bytes']} bytes then, {now['bytes']} now"
    return "has other contents" if key == "contents" else "has files of other names, sizes or modification times"


def _examples(record: Mapping[str, Any]) -> str | None:
    if "train" not in record or "characters" in record:
        return None
    held_out = 0 if record["validation_from"] == "test set" else record["validation"]
    test = f" and {record['test']} test" if "test" in record else ""
    return f"{record['train'] + held_out} training{test} examples"


def outputs(record: Mapping[str, Any]) -> str | None:
    """Prediction of a network for the data of a record, such as `3 classes`; None if the record does not say it."""
    if targets := len(record.get("target_mean") or ()):
        return f"{targets} target{'s' if targets > 1 else ''} of a regression"
    return f"{record['classes']} classes" if "classes" in record else None


def _shape(record: Mapping[str, Any]) -> str | None:
    return f"examples of shape {tuple(record['input_shape'])}" if "input_shape" in record else None
