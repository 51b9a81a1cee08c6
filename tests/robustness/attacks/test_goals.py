"""What counts as a success: any wrong class, a target, and never a reject class."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from library_attacks import batch, conv
from torch import nn

from biotorch.robustness import PGD, TPGD, Attack, AutoAttack, AutoPGD, Detector, Square, Transfer, study
from biotorch.robustness.attacks.losses import TARGETED, targeted_dlr
from biotorch.robustness.plan import ATTACKS

FAST = {
    "pgd": {"steps": 10},
    "eot_pgd": {"steps": 5, "samples": 2},
    "tpgd": {"steps": 5},
    "few_pixel": {"pixels": 8, "steps": 4, "population": 16},
    "square": {"queries": 60},
    "auto_pgd": {"steps": 10},
}
QUICK = sorted(set(ATTACKS) - {"auto_attack"})
FOLLOWS = [name for name in QUICK if ATTACKS[name].targeted]
IMAGES, LABELS = batch(30)


def make(name, model, epsilon=0.1, **more):
    if name != "few_pixel":
        more["epsilon"] = epsilon
    return ATTACKS[name](model, **FAST.get(name, {}), **more)


def run(attack, images, labels, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return attack.run(images, labels, **more)


# Targets ------------------------------------------------------------------------------------------------


def test_targeted_losses_are_what_they_say():
    outputs = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels, targets = torch.tensor([0, 1, 2, 3, 4, 0]), torch.tensor([1, 2, 3, 4, 0, 3])
    found = {name: loss(outputs, labels, targets).tolist() for name, loss in TARGETED.items()}
    for i, (row, y, t) in enumerate(zip(outputs.tolist(), labels.tolist(), targets.tolist(), strict=True)):
        first, _, third, fourth, _ = sorted(row, reverse=True)
        others = [value for index, value in enumerate(row) if index != t]
        assert found["ce"][i] == pytest.approx(row[t] - math.log(sum(math.exp(value) for value in row)))
        assert found["margin"][i] == pytest.approx(row[t] - max(others))
        assert found["dlr"][i] == pytest.approx(-(row[y] - row[t]) / (first - (third + fourth) / 2))
    with pytest.raises(ValueError, match="four classes"):
        targeted_dlr(torch.zeros(1, 3), torch.tensor([0]), torch.tensor([1]))


@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_the_targeted_optimum_of_a_linear_network_is_found(loss):
    """With two classes the steepest direction towards the target is known."""
    generator = torch.Generator().manual_seed(1)
    net = nn.Linear(20, 2).double()
    images = 0.3 + 0.4 * torch.rand(40, 20, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        net.bias.copy_(-(images @ net.weight.T).mean(0))
    labels = net(images).argmax(1)
    direction = (net.weight[1 - labels] - net.weight[labels]).detach()
    attack = PGD(net, 0.05, loss=loss, steps=20, stop_at_success=False)
    found = attack(images, labels, targets=1 - labels)
    assert torch.allclose(found, images + 0.05 * direction.sign(), atol=1e-12)


@pytest.mark.parametrize("targets", ["classes", "random", "least_likely", "next"])
@pytest.mark.parametrize("name", FOLLOWS)
def test_an_image_is_broken_where_it_is_classified_as_its_target(name, targets):
    model = conv().eval()
    labels = LABELS.clone()
    labels[:3] = (labels[:3] + 1) % 4  # misclassified; the first of them as its target
    wanted = (labels + 1) % 4
    wanted[0] = LABELS[0]
    before = model(IMAGES)
    if targets != "classes":
        ranked = before.scatter(1, labels[:, None], math.nan if targets == "random" else math.inf).argsort(1)
        wanted = {"least_likely": ranked[:, 0], "next": ranked[:, -2]}.get(targets)
    found = run(make(name, model, 0.3), IMAGES, labels, targets=wanted if targets == "classes" else targets)
    after = model(found.adversarial).argmax(1)
    assert torch.equal(found.clean, before.argmax(1) == labels)
    if wanted is not None:
        assert torch.equal(found.robust, (after != wanted) & (before.argmax(1) != wanted))
    else:
        assert found.robust[~((after != labels) | (before.argmax(1) != labels))].all()
    if targets == "next" and name != "random_signs":
        assert found.robust.sum() < 15
    if targets == "classes":
        assert torch.equal(found.adversarial[0], IMAGES[0]) == ATTACKS[name](model).skips_solved
        assert not found.robust[0]


@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_auto_pgd_reaches_the_targets_that_pgd_reaches(loss):
    model = conv().eval()
    targets = (LABELS + 1) % 4
    pgd, auto = (run(kind(model, 0.2, steps=20, loss=loss), IMAGES, LABELS, targets=targets) for kind in (PGD, AutoPGD))
    assert 0 < pgd.robust.sum() < 25
    assert auto.robust.sum() <= pgd.robust.sum() + 1


def test_square_counts_its_queries_with_targets():
    found = run(Square(conv(), 1e-4, queries=20), IMAGES, LABELS, targets="least_likely")
    assert found.queries.tolist() == [20] * 30


class Own(Attack):
    """An attack that somebody wrote before there were targets."""

    def perturb(self, attempt, index):
        return attempt.images[index]

    @property
    def passes(self):
        return 1, 0


@pytest.mark.parametrize(
    ("attack", "targets", "message"),
    [
        (TPGD, (LABELS + 1) % 4, "TPGD follows none; FGSM, PGD, EOTPGD, AutoPGD, Square, FewPixel and Transfer do"),
        (AutoAttack, "next", "AutoAttack follows none"),
        (Own, "next", "Own follows none"),
        (PGD, LABELS, "30 images have their own label"),
        (PGD, LABELS[:3], "one class per image"),
        (PGD, LABELS + 0.5, "whole numbers"),
        (PGD, LABELS + 7, "targets: class 10 is beyond the network's 4 outputs"),
        (PGD, "nearest", "random, least_likely, next"),
        (lambda model: PGD(model, abstain=3), LABELS * 0 + 3, "reject class"),
    ],
)
def test_mistakes_in_targets_are_told(attack, targets, message):
    labels = LABELS.clamp(max=2) if "reject" in message else LABELS
    with pytest.raises(ValueError, match=message):
        attack(conv())(IMAGES, labels, targets=targets)


# A reject class -----------------------------------------------------------------------------------------


class Rejecting(nn.Module):
    """A network with one more output, at `place`, which is the largest of the others plus `excess`."""

    def __init__(self, place, excess):
        super().__init__()
        self.place, self.excess, self.net = place, excess, conv()

    def forward(self, images):
        outputs = self.net(images)
        rejects = (outputs.amax(1) + self.excess)[:, None]
        return torch.cat([outputs[:, : self.place], rejects, outputs[:, self.place :]], 1)


@pytest.mark.parametrize("place", [0, 2, 4])
@pytest.mark.parametrize("name", [*QUICK, "transfer"])
def test_a_reject_class_that_never_wins_changes_nothing(name, place):
    labels = LABELS + (place <= LABELS).long()
    if name == "transfer":
        make_one = lambda model, **more: Transfer(model, 0.1, source=conv(), steps=5, **more)  # noqa: E731
    else:
        make_one = lambda model, **more: make(name, model, **more)  # noqa: E731
    plain = run(make_one(conv()), IMAGES, LABELS)
    found = run(make_one(Rejecting(place, -50.0), abstain=place), IMAGES, labels)
    assert found.clean.all()
    assert torch.equal(found.adversarial, plain.adversarial)
    assert torch.equal(found.robust, plain.robust)


@pytest.mark.parametrize("name", QUICK)
def test_rejecting_all_images_is_not_being_right(name):
    found = run(make(name, Rejecting(4, 1.0), abstain=4), IMAGES, LABELS)
    assert not found.clean.any()
    assert not found.robust.any()


def detector(threshold=-0.02):
    """Rejects where the two largest outputs are less than 0.02 apart."""
    return Detector(conv(), lambda _, outputs: -outputs.topk(2, 1).values.diff(dim=1).abs()[:, 0], threshold).eval()


@pytest.mark.parametrize("name", QUICK)
def test_a_rejected_example_is_no_success(name):
    model = detector()
    before = model(IMAGES).argmax(1)
    found = run(make(name, model, 0.2, abstain=4), IMAGES, LABELS)
    after = model(found.adversarial).argmax(1)
    assert 0 < found.clean.sum() < 30
    assert torch.equal(found.clean, before == LABELS)
    assert torch.equal(found.robust, (before == LABELS) & ((after == LABELS) | (after == 4)))


def test_a_detector_helps_against_an_attack_that_does_not_know_it():
    """Without `abstain` every rejected example counts as broken; with it, those alone that no class rejects."""
    model = detector()
    with_it, without = (run(PGD(model, 0.02, abstain=each), IMAGES, LABELS).robust.sum() for each in (4, None))
    assert without < with_it


def test_targets_and_a_reject_class():
    model, targets = detector(), (LABELS + 1) % 4
    for name in ("pgd", "auto_pgd", "square"):
        attack = make(name, model, 0.3, abstain=4)
        found = run(attack, IMAGES, LABELS, targets=targets)
        reached = model(found.adversarial).argmax(1) == targets
        assert reached.any()
        assert torch.equal(found.robust, ~reached & (model(IMAGES).argmax(1) != targets))
        assert run(attack, IMAGES, LABELS, targets="next").robust.sum() < 30


def test_a_source_that_rejects_is_evaded_and_one_that_does_not_is_used():
    model = detector()
    evaded, ignored = (Transfer(model, 0.2, source=source, abstain=4) for source in (model, conv()))
    found = run(evaded, IMAGES, LABELS)
    own = PGD(model, 0.2, stop_at_success=False, abstain=4)
    assert abs(found.robust.sum() - run(own, IMAGES, LABELS).robust.sum()) <= 2
    assert run(ignored, IMAGES, LABELS).robust.sum() <= 3


def test_outputs_of_a_detector():
    scores = torch.tensor([0.2, 0.7])
    found = Detector(nn.Identity(), lambda *_: scores, 0.5)(torch.tensor([[1.0, 3.0], [2.0, -1.0]]))
    assert torch.allclose(found, torch.tensor([[1.0, 3.0, 2.7], [2.0, -1.0, 2.2]]))
    one = Detector(nn.Identity(), lambda *_: scores, 0.5)(torch.tensor([[1.0], [-2.0]]))
    assert torch.allclose(one, torch.tensor([[0.0, 1.0, 0.7], [0.0, -2.0, 0.2]]))
    with pytest.raises(ValueError, match=r"shape \(2,\) is needed, not \(2, 1\)"):
        Detector(nn.Identity(), lambda *_: scores[:, None], 0.5)(torch.zeros(2, 3))


def test_mistakes_about_the_reject_class_are_told():
    for abstain, message in ((-1, "from 0 on"), (1.5, "from 0 on"), (4, "abstain: class 4 is beyond the network's 4")):
        with pytest.raises(ValueError, match=message):
            PGD(conv(), abstain=abstain)(IMAGES, LABELS)
    with pytest.raises(ValueError, match="labels: 3 is the reject class"):
        PGD(conv(), abstain=3)(IMAGES, LABELS)


def test_a_study_warns_of_useless_gradients_by_its_check_alone():
    class Detached(nn.Module):
        def forward(self, images):
            return images.detach().flatten(1)[:, :4]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = study(Detached(), (IMAGES, Detached()(IMAGES).argmax(1)), attacks=["pgd"], epsilons=[0.01])
    assert "zero or non-finite gradients" in [each.name for each in found.fired]
