"""What every test shares: one thread (two cores run several workers), a fixed seed, quiet hypothesis."""

import pytest
import torch
from hypothesis import HealthCheck, settings

from biotorch.kernel import teaching

torch.set_num_threads(1)
settings.register_profile(
    "biotorch",
    deadline=None,
    derandomize=True,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
settings.load_profile("biotorch")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def targets():
    """Some targets for the rules that send them: for tests of layers under every rule, which need not know of any.

    What the package itself has to tell its networks (in training, attacks and audits) is tested without it.
    """
    with teaching.given(teaching.RandomTargets(scale=1.0)):
        yield
