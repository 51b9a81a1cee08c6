"""Runs in processes of their own that are killed on the way, for experiment/test_resume.py.

Children import this module by its name, which they could not do with a file of tests.
"""

import itertools
import multiprocessing
import os
import signal
from pathlib import Path

import runs
import torch

from biotorch.experiment import run

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
        "biotorch.conversion.convert",
        "biotorch.experiment.study",
        "biotorch.report.figures",
        "biotorch.training.loop",
    ]
)


def child(folder: Path, overrides: tuple[str, ...], die_at: int | None = None) -> None:
    """One process of a run; with `die_at` it is killed at that step of its work on files."""
    torch.set_num_threads(1)
    runs.register_small()
    if die_at is not None:
        _die_at(die_at)
    run(runs.quick(folder, *overrides))


def _die_at(number: int) -> None:
    """SIGKILL right before the `number`th time that something on disk is synced, renamed or removed."""
    counter = itertools.count(1)

    def counted(action):
        def instead(*args, **kwargs):
            if next(counter) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return action(*args, **kwargs)

        return instead

    os.fsync = counted(os.fsync)
    for name in ("replace", "unlink"):
        setattr(Path, name, counted(getattr(Path, name)))


def start(*args) -> multiprocessing.Process:
    process = FORKS.Process(target=child, args=args)
    process.start()
    return process
