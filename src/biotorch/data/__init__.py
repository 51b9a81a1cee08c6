"""Data sets, their splits, and batches of them."""

from biotorch.data.datasets import DataConfig, Dataset, Split, available, load

__all__ = ["DataConfig", "Dataset", "Split", "available", "load"]
