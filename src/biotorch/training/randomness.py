"""Order of the examples, and state of the global random generators of every process."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from biotorch import _seeding
from biotorch.errors import ResumeError
from biotorch.training.distributed import gather

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def updates(count: int, batch_size: int, accumulate: int, smallest: int, seed: int) -> list[Tensor]:
    """Indices of the examples in each update of one epoch, in an order that depends only on `seed`.

    An update takes `accumulate` batches. If the last batch of the epoch has fewer than `smallest` examples, it is left
    out, because batch statistics need two. Every epoch leaves out other examples.
    """
    shuffled = torch.randperm(count, generator=_seeding.generator(seed))
    rest = count % batch_size
    if rest < smallest and count > rest:
        shuffled = shuffled[: count - rest]
    return list(torch.split(shuffled, batch_size * accumulate))


def shares(whole: list[Tensor], batch_size: int, rank: int, world: int) -> tuple[list[Tensor], list[int]]:
    """Share of process `rank` of `world` in each batch of each update, and the number of its examples that count.

    If the share would be empty, it holds one example of another process, and the number is 0.
    """
    batches = [batch for update in whole for batch in torch.split(update, batch_size)]
    mine = [batch[rank::world] for batch in batches]
    counts = [len(part) for part in mine]
    return [part if len(part) else batch[:1] for part, batch in zip(mine, batches, strict=True)], counts


def snapshot(fabric: Fabric) -> list[dict[str, Any]]:
    """State of the random generators of every process, by rank, as tensors and plain values."""
    kind, keys, *position = np.random.get_state()
    mine = {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(fabric.device) if fabric.device.type == "cuda" else None,
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *position],
    }
    return gather(mine, fabric)


def restore(states: list[dict[str, Any]], fabric: Fabric) -> None:
    """Restore the states that `snapshot` returned. Raises ResumeError if the number of processes has changed."""
    if len(states) != fabric.world_size:
        raise ResumeError(
            f"the checkpoint was written by {len(states)} process(es), but this run has {fabric.world_size}: "
            "continue with the same number, or start again with --overwrite"
        )
    mine = states[fabric.global_rank]
    torch.set_rng_state(mine["torch"])
    if mine["cuda"] is not None and fabric.device.type == "cuda":
        torch.cuda.set_rng_state(mine["cuda"], fabric.device)
    version, internal, gauss = mine["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *position = mine["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *position))


@contextlib.contextmanager
def repeatable(seed: int, deterministic: bool, threads: int | None) -> Iterator[None]:
    """Seed the generators and set determinism and threads inside the `with` block; restore everything at its end."""
    python, numpy_state = random.getstate(), np.random.get_state()
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    threads_before = torch.get_num_threads()
    debugging: Any = torch.utils.deterministic  # fills new memory with nan, which costs time
    fill_before = debugging.fill_uninitialized_memory
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.use_deterministic_algorithms(deterministic)
        debugging.fill_uninitialized_memory = False
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warn_only)
            debugging.fill_uninitialized_memory = fill_before
            torch.set_num_threads(threads_before)
            random.setstate(python)
            np.random.set_state(numpy_state)
