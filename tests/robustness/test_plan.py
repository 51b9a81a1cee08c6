"""What a study plans: attacks, gradients, budgets, and what it refuses to compare."""

import itertools
import math

import numpy as np
import pytest
import torch
from studies import EPSILONS, FAST, network, quick

import biotorch
from biotorch.robustness import FGSM, Attack, RandomSigns, study
from biotorch.robustness.attacks.base import gradients_of
from biotorch.robustness.plan import ATTACKS, default_epsilons, plan


class Halfway(Attack):
    """Of somebody who is not of this library: a step towards grey."""

    def __init__(self, model, epsilon=0.1, *, share=0.5, **common):
        super().__init__(model, epsilon, **common)
        self.share = share

    def perturb(self, attempt, index):
        images = attempt.images[index]
        return images + self.share * self.epsilon * (0.5 - images).sign()

    @property
    def passes(self):
        return 1, 0


def gradients(planned, name):
    return [each.gradient for each in planned if each.name == name]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (network(), ["true"]),
        (biotorch.convert(network(), "backpropagation"), ["true"]),
        (biotorch.convert(network(), "fa"), ["feedback", "true"]),
        (biotorch.convert(network(), "dfa"), ["feedback", "true"]),
        (biotorch.convert(network(), {"1": "fa", "*": "backpropagation"}), ["feedback", "true"]),
    ],
    ids=["plain", "backpropagation", "fa", "dfa", "mixed"],
)
def test_both_gradients_where_there_are_two(model, expected):
    planned = plan(model, FAST, [0.1], transfer=True)
    assert gradients(planned, "fgsm") == gradients(planned, "pgd") == gradients(planned, "transfer_to") == expected
    assert gradients(planned, "random_signs") == gradients(planned, "transfer") == [None]
    assert gradients_of(model) == tuple(expected)


@pytest.mark.parametrize("gradient", ["feedback", "true"])
def test_a_gradient_that_is_asked_for_is_the_only_one(converted, gradient):
    assert gradients(plan(converted, [{"type": "pgd", "gradient": gradient}], [0.1]), "pgd") == [gradient]


def test_an_attack_that_is_named_twice_is_planned_once(converted):
    assert plan(converted, ["fgsm", "fgsm"], [0.1, 0.1]) == plan(converted, ["fgsm"], [0.1])


@pytest.mark.parametrize(
    ("shape", "norm", "expected"),
    [((2, 1, 28, 28), "linf", (0.1, 0.2, 0.3)), ((2, 3, 32, 32), "linf", (2 / 255, 8 / 255)),
     ((2, 784), "linf", (0.1, 0.2, 0.3)), ((2, 1, 28, 28), "l2", (1.0, 1.5, 2.0)), ((2, 3, 8, 8), "l2", (0.25, 0.5))],
)  # fmt: skip
def test_epsilons_go_by_the_kind_of_image(shape, norm, expected):
    assert default_epsilons(torch.rand(shape), norm) == expected


def test_the_verdict_is_given_at_the_middle_epsilon_and_of_two_at_the_larger(data):
    judged = {
        count: quick(network(), data, attacks=["pgd"], epsilons=EPSILONS[:count]).judged_at for count in (1, 2, 3)
    }
    assert judged == {1: EPSILONS[0], 2: EPSILONS[1], 3: EPSILONS[1]}


def test_quick():
    planned = plan(network())
    epsilons = (0.1, 0.2, 0.3)
    found = [(each.name, each.epsilon, each.images) for each in planned]
    names = ("random_signs", "fgsm", "pgd", "square")
    assert found == [(name, epsilon, None) for name, epsilon in itertools.product(names, epsilons)]
    assert all(each.settings["queries"] == 1000 for each in planned if each.name == "square")
    assert all(each.build(network(), 0, 1).settings["steps"] == 40 for each in planned if each.name == "pgd")


def test_paper():
    planned = plan(network(), preset="paper")
    tenths = [step / 100 for step in range(11)]
    for name in ("random_signs", "fgsm", "pgd", "eot_pgd", "tpgd"):
        found = [each for each in planned if each.name == name]
        assert [each.epsilon for each in found] == tenths
        assert {each.images for each in found} == {None}
    steps = {name: {each.settings["steps"] for each in planned if each.name == name} for name in ("pgd", "eot_pgd")}
    assert steps == {"pgd": {40}, "eot_pgd": {40}}
    assert {each.settings["step_size"] for each in planned if "step_size" in each.settings} == {2 / 255}
    assert {each.settings["samples"] for each in planned if each.name == "eot_pgd"} == {10}
    assert {each.settings["steps"] for each in planned if each.name == "tpgd"} == {7}
    pixels = [each for each in planned if each.name == "few_pixel"]
    assert [(each.settings["pixels"], each.epsilon, each.images) for each in pixels] == [
        (count, float(count), 500) for count in range(1, 6)
    ]
    square = [each for each in planned if each.name == "square"]
    assert {each.images for each in square} == {500}
    epsilons = {
        count: [each.epsilon for each in square if each.settings["queries"] == count] for count in (50, 1000, 5000)
    }
    assert np.allclose(epsilons.pop(50), np.linspace(0, 0.1, 30))  # as the paper has it
    assert list(epsilons.values()) == [tenths, tenths]
    assert len(square) == 30 + 2 * 11


def test_presets_with_stand_ins(monkeypatch):
    """Where the black-box attacks are not there yet, stand-ins take their settings."""

    class Standing(RandomSigns):
        def __init__(
            self, model, epsilon=0.1, *, queries=0, p_init=0.0, loss="ce", pixels=0, steps=0, population=0, **common
        ):
            super().__init__(model, epsilon, **common)
            self.queries, self.p_init, self.loss = queries, p_init, loss
            self.pixels, self.steps, self.population = pixels, steps, population

    class Pixels(Standing):
        fixed = {"epsilon": "it counts pixels"}  # noqa: RUF012

    monkeypatch.setitem(ATTACKS, "square", Standing)
    monkeypatch.setitem(ATTACKS, "few_pixel", Pixels)
    test_quick()
    test_paper()


def test_autoattack(converted):
    found = [each for each in plan(converted, ["pgd"], [0.1], autoattack=True) if each.name == "auto_attack"]
    assert [(each.gradient, each.epsilon) for each in found] == [("true", 0.1)]


def test_budgets_of_square():
    planned = plan(network(), ["pgd"], [0.1], square_queries=[50, 200])
    assert [each.settings["queries"] for each in planned if each.name == "square"] == [50, 200]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"attacks": ["few_pixel"]}, "no epsilon to judge"), ({"epsilons": [8]}, "fraction such as 8/255"),
     ({"attacks": ["pgd", {"type": "pgd", "norm": "l2"}]}, "but the study uses linf")],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(data, settings, message):
    with pytest.raises(ValueError, match=message):
        study(network(), data, **settings)


def test_labels_beyond_the_outputs_are_refused(data):
    images, labels = data
    with pytest.raises(ValueError, match=r"class 99 is beyond the network's \d+ outputs"):
        study(network(), (images, torch.full_like(labels, 99)), attacks=["pgd"])


def test_the_norm_reaches_every_attack(data):
    found = quick(network(), data, norm="l2", source=network(1))
    assert {each.settings["norm"] for each in found.measurements} == {"l2"}
    assert max(each.epsilon for each in found.measurements) == math.sqrt(16)


def test_an_attack_of_ones_own(data):
    found = quick(network(), data, attacks=[Halfway, FGSM], epsilons=[0.1])
    assert {(each.name, each.label) for each in found.measurements} == {("Halfway", "Halfway"), ("fgsm", "fgsm")}
    (own,) = (each for each in found.measurements if each.name == "Halfway")
    assert own.settings["share"] == 0.5
    assert own.gradient is None
    assert "Halfway" in found.table.markdown()


def test_settings_reach_the_attack_and_the_label(data):
    found = quick(network(), data, attacks=[{"type": "pgd", "steps": 3, "restarts": 2, "loss": "margin"}])
    figures = [each for each in found.measurements if each.purpose == "figure"]
    assert {each.label for each in figures} == {"pgd steps=3 restarts=2 loss=margin"}
    assert {(each.settings["steps"], each.settings["restarts"]) for each in figures} == {(3, 2)}
    assert [(each.settings["steps"], each.settings["restarts"]) for each in found.measurements[-3:]] == [
        (1, 2),
        (3, 4),
        (3, 2),
    ]


def test_settings_are_read_as_a_configuration_reads_them(data):
    def planned(**settings):
        return plan(network(), **{"attacks": ["fgsm"], "epsilons": [8 / 255], **settings})

    usual = planned()
    for same in ({"attacks": "fgsm"}, {"attacks": FGSM}, {"attacks": {"type": "fgsm"}}):
        assert planned(**same) == usual
    for same in (["8/255"], "8/255", 8 / 255, np.float64(8 / 255), torch.tensor(8 / 255, dtype=torch.float64)):
        assert planned(epsilons=same) == usual
    assert study(network(), list(data), "fgsm", 0.1).clean_accuracy == 90.0
    for settings, message in (
        ({"preset": "papr"}, "unknown preset 'papr'. Did you mean 'paper'"),
        ({"epsilons": ["8:255"]}, "epsilons: .*fraction such as 8/255"),
        ({"epsilons": [None]}, r"epsilons: .*fractions such as 8/255 are needed, not \[None\]"),
        ({"epsilons": 8}, "fraction such as 8/255"),
    ):
        with pytest.raises(ValueError, match=message):
            planned(**settings)
    with pytest.raises(ValueError, match="source: an nn"):
        study(network(), data, source=torch.sin)


def test_a_usual_study_of_vectors_goes_without_square(data):
    vectors = data[0].flatten(1), data[1]
    found = study(network(), vectors, epsilons=[0.1])
    assert {each.name for each in found.measurements} == {"random_signs", "fgsm", "pgd"}
    with pytest.raises(ValueError, match="Square needs"):
        study(network(), vectors, epsilons=[0.1], square_queries=[10])
