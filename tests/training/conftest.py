"""The data that adversarial training is tested on."""

import pytest

from biotorch import data


@pytest.fixture(scope="module")
def digits():
    """97 images of 8x8 for training."""
    return data.load(data.DataConfig(dataset="digits", validation_size=1340), seed=1)
