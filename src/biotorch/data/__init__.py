"""Data sets, their splits, and batches of examples."""

from biotorch.data.config import DataConfig
from biotorch.data.digests import difference, without_test
from biotorch.data.images import Augmentation
from biotorch.data.loading import Dataset, describe, load, misread, require_present
from biotorch.data.sources import available
from biotorch.data.splits import Kind, Split, Task
from biotorch.errors import DataError

__all__ = [
    "Augmentation",
    "DataConfig",
    "DataError",
    "Dataset",
    "Kind",
    "Split",
    "Task",
    "available",
    "describe",
    "difference",
    "load",
    "misread",
    "require_present",
    "without_test",
]
