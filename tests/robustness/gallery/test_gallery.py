"""No fake defence is called robust by a study, and no honest network masked."""

import os

import adaptive  # noqa: F401 - its classes are in `FAKES`
import fakes
import fakes_images  # noqa: F401
import fakes_outputs  # noqa: F401
import honest_nets
import moving  # noqa: F401
import pytest
import torch
from grounds import FOLDER, accuracy, images_of

from biotorch.robustness import PGD, study

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # the first test that needs a network trains it
    pytest.mark.skipif(not os.path.isdir(os.path.join(FOLDER or "-", "MNIST")), reason="BIOTORCH_DATA has no MNIST"),
]


def beyond(name):
    """A fake, expected to pass if no study can find it out."""
    reason = fakes.FAKES[name].beyond
    return pytest.param(name, marks=[pytest.mark.xfail(reason=reason, strict=False)] if reason else [])


@pytest.mark.parametrize("name", fakes.FAKES)
def test_a_fake_is_one(name):
    """It classifies clean images, and an attacker who has read its class breaks most of them."""
    kind = fakes.FAKES[name]
    clean, images = accuracy(kind(), images_of(train=False)[0], passes=3), kind().examples()
    farthest = float((images - images_of(train=False)[0]).abs().max())
    assert clean > 85
    assert farthest <= kind.epsilon + 1e-6
    left = accuracy(kind(), images, passes=3, abstain=kind.settings.get("abstain"))
    assert left < 0.42 * clean


@pytest.mark.parametrize("name", [beyond(name) for name in fakes.FAKES])
def test_no_fake_is_called_robust(name):
    kind = fakes.FAKES[name]
    found = study(kind(), images_of(train=False), epsilons=[kind.epsilon], **kind.settings)
    assert found.verdict != "robust", str(found)


@pytest.mark.parametrize("name", honest_nets.HONEST)
def test_an_honest_network_gets_its_word(name):
    """Certificates are no greater than what attacks leave, so that the study can be no stronger than the truth."""
    made = honest_nets.HONEST[name]()
    found = study(made.network, made.data, epsilons=[made.epsilon], **made.settings)
    assert found.verdict in ({made.truth, "inconclusive"} if made.doubted else {made.truth}), str(found)
    if made.certified is not None:
        assert 50 < made.certified <= found.worst_case[made.epsilon][0]


@pytest.mark.parametrize("name", honest_nets.HONEST)
def test_the_truth_of_an_honest_network(name):
    """A long attack along its own gradient, with two losses, leaves more than half or less, as is claimed."""
    made = honest_nets.HONEST[name]()
    settings = {"steps": 60, "norm": made.settings.get("norm", "linf")}
    both = [PGD(made.network, made.epsilon, loss=loss, **settings).run(*made.data) for loss in ("ce", "margin")]
    left = (both[0].robust & both[1].robust).float().mean()
    assert (left > 0.5 * both[0].clean.float().mean()) == (made.truth == "robust")
    assert torch.equal(both[0].clean, both[1].clean) or "noise" in name
