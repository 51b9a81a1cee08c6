"""Images that a DataLoader and its worker processes read from files when they are needed."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils import data

from biotorch import _seeding
from biotorch.data import digests
from biotorch.data.images import Normalisation, decode
from biotorch.data.splits import Paths, Split
from biotorch.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

#: Test images are resized to this multiple of the crop, as usual for ImageNet (a crop of 224 out of 256).
_MARGIN = 256 / 224
_CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True, eq=False)
class FileSplit(Split):
    """Image files, cropped to `size` x `size`: at random if `augmented`, else at the centre."""

    paths: Paths
    labels: Tensor
    normalisation: Normalisation
    size: int
    augmented: bool = False
    num_workers: int = 0
    skip_corrupt: bool = False
    device: torch.device = _CPU
    _skipped: set[str] = dataclasses.field(default_factory=set)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return 3, self.size, self.size

    @property
    def skipped(self) -> list[str]:
        return sorted(self._skipped)

    def to(self, device: torch.device) -> FileSplit:
        return dataclasses.replace(self, device=device)

    def batches(self, parts: Iterable[Tensor], augmentation: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        loader = data.DataLoader(
            _Files(self.paths, self.size, augmentation if self.augmented else None),
            batch_sampler=(part.tolist() for part in parts),
            num_workers=self.num_workers,
            collate_fn=_Batch.of,
            worker_init_fn=_leave_signals_to_the_parent,
            pin_memory=self.device.type == "cuda",
            # Otherwise the loader draws the seeds of its workers from the global generator.
            generator=_seeding.generator(0),
        )
        for batch in loader:
            if batch.changed:
                raise digests.changed(batch.changed[0])
            if batch.failures and not self.skip_corrupt:
                raise DataError(
                    f"{next(iter(batch.failures.values()))} Repair or remove it, or set data.skip_corrupt: true."
                )
            self._skipped.update(batch.failures)
            images = batch.images.view(-1, self.size, self.size, 3).to(self.device, non_blocking=True)
            yield self.normalisation(images), self.labels[batch.indices].to(self.device)


class _Failure(NamedTuple):
    """Reason why a worker could not read a file. An exception would reach the parent in a second traceback."""

    path: str
    message: str
    changed: bool = False


class _Batch(NamedTuple):
    """Images (n, H, W, C) uint8, their indices (n,), by path the message for every file that cannot be read, and paths
    of files that are no longer those that were listed.
    """

    images: Tensor
    indices: Tensor
    failures: dict[str, str]
    changed: list[str]

    @classmethod
    def of(cls, examples: list[tuple[int, Tensor | _Failure]]) -> _Batch:
        read = [(index, image) for index, image in examples if isinstance(image, Tensor)]
        failures = [failure for _, failure in examples if isinstance(failure, _Failure)]
        return cls(
            torch.stack([image for _, image in read]) if read else torch.empty(0, dtype=torch.uint8),
            torch.tensor([index for index, _ in read], dtype=torch.int64),
            {failure.path: failure.message for failure in failures},
            [failure.path for failure in failures if failure.changed],
        )


class _Files(data.Dataset[tuple[int, "Tensor | _Failure"]]):
    """Work of a worker process: it turns one file at a time into its pixels (H, W, C) uint8."""

    def __init__(self, paths: Paths, size: int, augmentation: int | None) -> None:
        from torchvision.transforms import v2

        self.paths = paths
        self.augmentation = augmentation
        self.view: Callable[[Image.Image], Image.Image]
        if augmentation is None:
            self.view = v2.Compose([v2.Resize(round(size * _MARGIN)), v2.CenterCrop(size)])
        else:
            self.view = v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()])

    def __getitem__(self, index: int) -> tuple[int, Tensor | _Failure]:
        path = self.paths.full(index)
        if digests.identity(path)[:2] != tuple(self.paths.identities[index, :2].tolist()):
            return index, _Failure(path, "", changed=True)
        try:
            image = decode(path, path)
        except DataError as error:
            return index, _Failure(path, str(error))
        if self.augmentation is None:
            return index, _pixels(self.view(image))
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which also seeds the devices; the fork does not restore these.
            torch.default_generator.manual_seed(_seeding.derive(self.augmentation, index))
            return index, _pixels(self.view(image))


def _leave_signals_to_the_parent(worker: int) -> None:
    """Ignore Ctrl-C and Slurm's SIGTERM in a worker, which the parent needs until its step is finished."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_for_the_parent, daemon=True).start()


def _end_for_the_parent() -> None:
    """Obey a SIGTERM only if the parent sends it, which it does when it exits in the middle of an epoch."""
    while sys.platform == "linux" and signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image))
