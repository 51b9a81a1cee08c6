"""Small data sets, and what the tests of data ask of their batches."""

import contextlib
import os
import random

import numpy as np
import pytest
import torch

needs_data = pytest.mark.skipif(
    not os.environ.get("BIOTORCH_DATA"), reason="BIOTORCH_DATA names no folder with MNIST and Fashion-MNIST"
)


def write_npz(path, train=40, test=10, **changed):
    """An .npz set of random coloured images; `changed` replaces arrays, None removes one."""
    generator = np.random.default_rng(len(path.name))
    arrays = {
        "x_train": generator.integers(0, 256, (train, 8, 8, 3), dtype=np.uint8),
        "y_train": np.arange(train) % 4,
        "x_test": generator.integers(0, 256, (test, 8, 8, 3), dtype=np.uint8),
        "y_test": np.arange(test) % 4,
    }
    np.savez(path, **{name: array for name, array in {**arrays, **changed}.items() if array is not None})
    return str(path)


def together(batches):
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


@contextlib.contextmanager
def untouched_randomness():
    """Fails if what is in it draws from, or seeds, a global generator."""
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    yield
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]
