"""Estimates of memory, compared with what the machine has before the memory is taken; and reuse of freed memory."""

from __future__ import annotations

import ctypes
import importlib
import os
import platform
from pathlib import Path

from biotorch.errors import NotEnoughMemoryError

_GIB = 2**30
#: Limit of a container or a Slurm job (cgroup v2), in bytes or the word `max`.
_LIMIT = Path("/sys/fs/cgroup/memory.max")
#: Parameters of `mallopt`, from malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def require(bytes_needed: int, what: str) -> None:
    """Check that the machine has as much memory as `what`, the beginning of a sentence, is going to take.

    Raises NotEnoughMemoryError with both figures in GiB.
    """
    free = available()
    if free is not None and bytes_needed > free:
        raise NotEnoughMemoryError(
            f"{what} would take {bytes_needed / _GIB:,.1f} GiB of memory, but this machine has {free / _GIB:,.1f} GiB "
            "available."
        )


def available() -> int | None:
    """Bytes of memory that new tensors can take, or None on a system that does not say.

    They include the cache of files, which the system gives up; without psutil they are all that the machine has.
    """
    try:
        free = int(importlib.import_module("psutil").virtual_memory().available)
    except ImportError:
        if not {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(getattr(os, "sysconf_names", ())):
            return None
        # Not SC_AVPHYS_PAGES, in which the cache of files counts as taken: it would refuse what fits.
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = _LIMIT.read_text().strip()
    except OSError:
        return free
    return min(free, int(limit)) if limit.isdecimal() else free


def keep_freed() -> None:
    """Let this process keep the memory that it frees, for its next tensors; does nothing without the GNU C library.

    By default every step gives large tensors back to the system and takes them again, page by page. That costs up to
    half of the time of a training step on a CPU (docs/performance.md).
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_TRIM_THRESHOLD, _GIB)
    if not mallopt(_MMAP_THRESHOLD, _GIB):
        mallopt(_MMAP_THRESHOLD, _GIB // 32)  # the most that versions before 2.35 take
