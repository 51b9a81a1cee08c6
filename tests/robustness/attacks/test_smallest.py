"""DeepFool, FAB and C&W: distances that are known, the library's own result, and the accuracy that follows."""

from __future__ import annotations

import math

import pytest
import torch
import torchattacks
from library_attacks import batch, conv
from pyautoattack.fab_pt import FABAttack_PT
from torch import nn

from biotorch import convert
from biotorch.robustness import CW, FAB, DeepFool, Smallest

SEARCHES = [
    *(
        (kind, {"norm": norm, **more})
        for kind, more in ((DeepFool, {}), (FAB, {"steps": 20}))
        for norm in ("linf", "l2", "l1")
    ),
    (FAB, {"norm": "l2", "steps": 20, "classes": 2}),
    (CW, {"steps": 50, "searches": 6}),
]
DUAL = {"linf": 1, "l2": 2, "l1": math.inf}


def linear(images):
    """A linear network of three classes, its labels, and the exact distance of each image from the nearest boundary."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net[1].weight.data = torch.randn(3, 64) / 8
    with torch.no_grad():
        net[1].bias.copy_(-net[1].weight.sum(1) / 2)  # all meet at the grey image, and no pixel has to leave [0, 1]
        outputs = net(images)
    labels = outputs.argmax(1)

    def distance(norm):
        exact = torch.full((len(images),), math.inf)
        for other in range(3):
            slopes = net[1].weight[other] - net[1].weight[labels]
            leads = outputs.gather(1, labels[:, None])[:, 0] - outputs[:, other]
            found = leads / slopes.norm(dim=1, p=DUAL[norm])
            exact = torch.where(labels == other, exact, exact.minimum(found))
        return exact.detach()

    return net, labels, distance


@pytest.mark.parametrize(("kind", "settings"), SEARCHES)
def test_distances_of_a_linear_network(kind, settings):
    images = 0.5 + 0.1 * torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model, labels, exact = linear(images)
    labels[0] = (labels[0] + 1) % 3
    found = kind(model, **settings).smallest(images, labels)
    expected = exact(found.norm)
    assert found.distances[0] == 0
    assert not found.clean[0]
    assert (found.distances[1:] >= expected[1:] * 0.999).all()
    worse = found.distances[1:] / expected[1:]
    assert worse.median() < {CW: 1.05, DeepFool: 1.021, FAB: 1.01}[kind]
    # In L1 a pixel may have to leave [0, 1]; the smallest c of C&W is too large for images beside the boundary.
    assert kind is CW or found.norm == "l1" or worse.max() < 1.021
    assert found.median == found.distances[1:].median()
    assert (model(found.adversarial).argmax(1) != labels).all()


@pytest.mark.parametrize(("kind", "settings"), SEARCHES)
def test_where_nothing_is_found(kind, settings):
    class Constant(nn.Module):
        def forward(self, images):
            return torch.tensor([1.0, 0.0, 0.0]).expand(len(images), 3) + 0 * images.flatten(1).sum(1, keepdim=True)

    images = batch(3)[0]
    found = kind(Constant(), **settings).smallest(images, torch.tensor([0, 0, 1]))
    assert found.distances.tolist() == [math.inf, math.inf, 0]
    assert torch.equal(found.adversarial, images)
    assert found.median == math.inf
    assert found.accuracy([0, 10]) == pytest.approx([200 / 3, 200 / 3])


@pytest.mark.parametrize("gradient", ["true", "feedback"])
@pytest.mark.parametrize(("kind", "settings"), [SEARCHES[0], SEARCHES[3], (CW, {"steps": 20, "searches": 3})])
def test_within_an_epsilon_it_breaks_what_is_nearer(kind, settings, gradient):
    model = convert(conv(), "fa", seed=0)
    images, labels = batch(20, model=model)
    found = kind(model, gradient=gradient, **settings).smallest(images, labels)
    epsilon = found.median if math.isfinite(found.median) else 0.5  # along the feedback FAB finds nothing
    outcome = kind(model, epsilon, gradient=gradient, **settings).run(images, labels)
    assert torch.equal(outcome.robust, found.distances > epsilon)
    assert 100 * outcome.robust.double().mean() == pytest.approx(found.accuracy([epsilon])[0])
    assert gradient == "feedback" or 0 < int((~outcome.robust).sum()) < 20


@pytest.mark.parametrize(("norm", "name"), [("linf", "Linf"), ("l1", "L1")])
def test_fab_is_that_of_the_library(norm, name):
    model = conv().eval()
    images, labels = batch(10, model=model)
    library = FABAttack_PT(model, norm=name, n_iter=15, device="cpu")
    expected = library.attack_single_run(images, labels)
    own = FAB(model, norm=norm, steps=15).smallest(images, labels)
    assert torch.allclose(own.adversarial, expected, atol=1e-6)
    assert own.queries.tolist() == [31] * 10  # one look, then a gradient and a look per step


def test_one_search_of_cw_is_as_good_as_that_of_torchattacks():
    model = conv().eval()
    images, labels = batch(30, model=model)
    images = 0.05 + 0.9 * images
    labels = model(images).argmax(1)
    theirs = torchattacks.CW(model, c=1, steps=150, lr=0.01)(images, labels)
    own = CW(model, first=1.0, searches=1, steps=150, step_size=0.01).smallest(images, labels)
    broken = model(theirs).argmax(1) != labels
    assert torch.equal(own.distances.isfinite(), broken)
    assert broken.sum() > 10
    distances = (theirs - images).flatten(1).norm(dim=1)
    assert (own.distances[broken] <= 1.02 * distances[broken]).all()


def test_figures_that_follow_from_distances():
    distances, clean = torch.tensor([0.0, 0.1, 0.3, 0.2, math.inf]), torch.tensor([False, True, True, True, True])
    found = Smallest("l2", distances, torch.zeros(5, 1), clean, torch.zeros(5))
    assert found.median == pytest.approx(0.2)
    assert found.accuracy([0, 0.1, 0.25, 9]) == pytest.approx([80, 60, 40, 20])
    assert math.isnan(Smallest("l2", distances[:1], torch.zeros(1, 1), clean[:1], torch.zeros(1)).median)


@pytest.mark.parametrize("detached", [False, True])
def test_fab_is_blind_only_where_no_class_has_a_gradient(detached):
    class One(nn.Module):
        def forward(self, images):
            z = images.flatten(1).mean(1, keepdim=True) - 0.5
            return z.detach() if detached else z

    images = batch(8)[0]
    attack = FAB(One(), 0.1, steps=3)
    attack.warns = False
    outcome = attack.run(images, (images.flatten(1).mean(1) > 0.5).long())
    assert outcome.blind.tolist() == [detached] * 8
    assert outcome.robust.tolist() == [detached] * 8


def test_data_come_as_for_every_attack():
    images, labels = batch(6)
    attack = DeepFool(conv(), norm="l2")
    expected = attack.smallest(images, labels).distances
    assert torch.equal(attack.smallest(images.numpy(), labels.tolist()).distances, expected)
    assert torch.equal(attack.smallest([(images[:4], labels[:4]), (images[4:], labels[4:])]).distances, expected)


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="CW supports l2, not 'linf'"):
        CW(conv(), norm="linf")
    with pytest.raises(TypeError, match="loss: FAB does not take"):
        FAB(conv(), loss="ce")
    with pytest.raises(ValueError, match="candidates"):
        DeepFool(conv(), candidates=0)
