"""Commands in processes of their own that are killed on the way, and what they leave on disk.

Children import this module by its name, which they could not do with a file of tests.
"""

from __future__ import annotations

import builtins
import csv
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import types
from pathlib import Path
from typing import Any

import runs
import torch
from commands import invoke

from biotorch import _files
from biotorch.experiment import run
from biotorch.experiment.folder import LOG_SUFFIX
from biotorch.experiment.measure import attack_run

# Children start from a process that has loaded everything once, and has no threads.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "pytest",
        "pandas",
        "tensorboard",
        "torch.utils.tensorboard",
        "torch._dynamo",
        "torchvision.models",
        "biotorch.cli.app",
        "biotorch.conversion.convert",
        "biotorch.experiment.study",
        "biotorch.report.figures",
        "biotorch.report.page",
        "biotorch.training.loop",
        "dying",
    ]
)


# Commands ------------------------------------------------------------------------------------------------

TINY = (
    "data={dataset: digits, validation_size: 1300}",
    "model={architecture: mlp, arguments: {depth: 2, width: 8}, mode: {type: fa}}",
    "training.hyperparameters={epochs: 2, batch_size: 128}",
    "infrastructure.checkpoint_seconds=0",
)
SEEDS = "sweep.experiment.seed=[0, 1]"


def one_run(folder: Path) -> None:
    run(runs.quick(folder, *runs.EVERYTHING_MATTERS, "training.hyperparameters.epochs=2", TINY[-1]))


def sweep(folder: Path) -> None:
    run(runs.quick(folder, *TINY, SEEDS, "logging.tensorboard=true"))


def overwrite(folder: Path) -> None:
    run(runs.quick(folder, *TINY, SEEDS, "model.mode.type=dfa"), overwrite=True)


def attack(folder: Path) -> None:
    settings = {"attacks": ["random_signs", "fgsm"], "epsilons": [0.1], "images": 20}
    attack_run(folder / "quick" / "seed=0", [(f"attacks.{name}", value) for name, value in settings.items()])


def report(folder: Path) -> None:
    wanted = ("-o", folder / "page.html", "--table", folder / "table.csv", "--figures", folder / "figures")
    assert invoke("report", folder / "quick", *wanted).exit_code == 0


def search(folder: Path) -> None:
    wanted = (*TINY, "training.hyperparameters.epochs=1", "--rates", "0.1,0.01", "--jobs", "1")
    ended = invoke("search", runs.quick_file(folder), *wanted)
    assert ended.exit_code == 0, ended.output


def cache(folder: Path) -> None:
    def download(partial: Path) -> None:
        for name in ("one", "two"):
            (partial / "set").mkdir(exist_ok=True)
            (partial / "set" / name).write_text(name * 1000)

    _files.complete(folder / "cache", "set", ["set/one", "set/two"], download)


#: Commands, and what must have run before each.
COMMANDS = {each.__name__: each for each in (one_run, sweep, overwrite, attack, report, search, cache)}
BEFORE = {"overwrite": (sweep,), "attack": (sweep,), "report": (sweep,)}


# Deaths --------------------------------------------------------------------------------------------------


def child(command: str, folder: Path, die_at: int | None, counted: Any) -> None:
    torch.set_num_threads(1)
    runs.register_small()
    if die_at is not None:
        _die_at(die_at, counted)
    COMMANDS[command](folder)


def perform(command: str, folder: Path, die_at: int | None = None) -> tuple[int, int]:
    """Run a command in a child; return its exit code, and how many operations on files it began."""
    counted = FORKS.Value("i", 0)
    process = FORKS.Process(target=child, args=(command, folder, die_at, counted))
    process.start()
    process.join()
    return process.exitcode, counted.value


def start(folder: Path, overrides: tuple[str, ...], die_at: int | None = None) -> multiprocessing.Process:
    process = FORKS.Process(target=_run, args=(folder, overrides, die_at))
    process.start()
    return process


def _run(folder: Path, overrides: tuple[str, ...], die_at: int | None) -> None:
    torch.set_num_threads(1)
    runs.register_small()
    if die_at is not None:
        _die_at(die_at, types.SimpleNamespace(value=0))
    run(runs.quick(folder, *overrides))


def _die_at(number: int, counted: Any) -> None:
    """SIGKILL right before the `number`th operation on a file; half of what is being written reaches the file."""

    def count() -> bool:
        counted.value += 1
        return counted.value == number

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def counting(action):
        def instead(*args, **kwargs):
            if count():
                die()
            return action(*args, **kwargs)

        return instead

    for name in ("replace", "rename", "unlink", "remove", "rmdir", "mkdir", "fsync", "symlink", "ftruncate"):
        setattr(os, name, counting(getattr(os, name)))
    open_descriptor, open_file = os.open, io.open

    def opened(path, flags, *args, **kwargs):
        if flags & os.O_CREAT and count():
            die()
        return open_descriptor(path, flags, *args, **kwargs)

    class Counted(io.FileIO):
        """What lies below the buffer of a file, where a write is a call of the system."""

        def write(self, data):
            if count():
                super().write(bytes(data)[: len(data) // 2])
                die()
            return super().write(data)

        def close(self):
            if not self.closed and count():
                die()
            super().close()

    def open_counting(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, *args):
        if not isinstance(file, str | os.PathLike) or not set(mode) & set("wax+"):
            return open_file(file, mode, buffering, encoding, errors, newline, *args)
        if count():
            die()
        raw = Counted(file, mode.translate({ord("b"): None, ord("t"): None}))
        buffered = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

    os.open, io.open, builtins.open = opened, open_counting, open_counting


# What is left --------------------------------------------------------------------------------------------

#: What differs between two equal runs: times, and the commit of a source tree that somebody works on.
_TIMES = ("seconds", "seconds_in_all", "examples_per_second", "commit")


def left(folder: Path) -> dict[str, Any]:
    """Content of every file below a folder, without times; TensorBoard's files are read as curves."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.endswith(("lock", LOG_SUFFIX)):
            found[str(path.relative_to(folder))] = _content(path)
        elif path.name == "logs":
            found[str(path.relative_to(folder))] = repr(runs.curves(path.parent))
    return found


def _content(path: Path) -> Any:
    if path.suffix == ".pth":
        return repr(_plain(torch.load(path, weights_only=True)))
    if path.suffix == ".png":
        return path.read_bytes()
    text = path.read_text()
    if path.suffix == ".json":
        content = _files.read_json(path)
        content.pop("digest", None)  # of the times too; it has just been checked
        return repr(_plain(content))
    if path.suffix == ".jsonl":
        return repr([_plain(json.loads(line)) for line in text.splitlines()])
    if path.name == "results.csv":
        return repr(_plain(list(csv.DictReader(io.StringIO(text)))))
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "", text)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items() if key not in _TIMES}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value.tolist() if isinstance(value, torch.Tensor) else value


class Trials:
    """A command that is killed, given again, and compared with what it leaves behind undisturbed.

    Attributes:
        operations: number of operations on files of the undisturbed command.
    """

    def __init__(self, command: str, folder: Path) -> None:
        self.command, self.before, self.folder = command, folder / "before", folder / "work"
        self.folder.mkdir()
        for needed in BEFORE.get(command, ()):
            needed(self.folder)
        shutil.copytree(self.folder, self.before)
        code, self.operations = perform(command, self.folder, die_at=-1)
        assert code == 0
        self.whole = left(self.folder)

    def differences(self, die_at: int) -> list[str]:
        """What is wrong after a death and the same command again; nothing should be."""
        shutil.rmtree(self.folder)
        shutil.copytree(self.before, self.folder)
        code, _ = perform(self.command, self.folder, die_at)
        if code != -signal.SIGKILL:
            return [f"ended with {code} instead of dying"]
        planted = self._plant()
        code, _ = perform(self.command, self.folder)
        if code != 0:
            return [f"the same command ended with {code}"]
        touched = [str(path) for path in planted if not path.is_file() or path.read_text() != str(path)]
        for path in planted:
            path.unlink(missing_ok=True)
        for path in self.folder.rglob("logs"):
            if not any(path.iterdir()):
                path.rmdir()
        mine = left(self.folder)
        return touched + [name for name in mine.keys() | self.whole.keys() if mine.get(name) != self.whole.get(name)]

    def _plant(self) -> list[Path]:
        """Write files of somebody else into every folder that the command has made its own."""
        planted = []
        for lock in self.folder.rglob("*lock"):
            for name in ("notes.txt", "mine.json", ".mine.unfinished", "logs/mine.txt"):
                path = lock.parent / name
                path.parent.mkdir(exist_ok=True)
                path.write_text(str(path))
                planted.append(path)
        return planted
