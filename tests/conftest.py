"""What every test shares: one thread (two cores run several workers), a fixed seed, quiet hypothesis."""

import gc
import json

import pytest
import torch
from hypothesis import HealthCheck, settings
from made_results import SWEEP
from runs import quick

from biotorch.experiment import run
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


def pytest_collection_finish(session):
    """Thousands of collected tests and all libraries are out of the garbage collector's sight.

    Else it walks through them again and again, and so does whoever looks for living optimizers.
    """
    gc.collect()
    gc.freeze()


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


# Finished runs, for tests that only read them -------------------------------------------------------------


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """The folder of six runs: backpropagation and fa under three seeds."""
    folder = tmp_path_factory.mktemp("store")
    run(quick(folder, SWEEP, "training.metrics={weight_alignment: true, gradient_alignment: true}"))
    return folder / "quick"


@pytest.fixture(scope="session")
def results(store):
    return [json.loads(path.read_text()) for path in sorted(store.glob("*/results.json"))]
