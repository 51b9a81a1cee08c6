"""The verdict of a study follows by rule from its checks."""

import pytest
import torch
from deceiving_networks import Wrapped, noisy, strongest_stands_in_the_sentence, train
from torch import nn

from biotorch.robustness import measurement


def test_a_network_that_is_robust(digits, run):
    """Linear, with margins that a thousandth per pixel cannot move."""
    torch.manual_seed(0)
    linear = train(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), digits[0])
    found = run(linear, epsilons=[0.0005, 0.001, 0.002])
    assert found.verdict == "robust", str(found)
    assert found.judged_at == 0.001
    strongest_stands_in_the_sentence(found)


def test_an_attack_that_fails_counts_more_than_a_gradient_that_masks(nets, run):
    found = run(Wrapped(nets.unaligned, after=lambda outputs: outputs.softmax(1)))
    assert {"attack", "feedback"} <= {check.about for check in found.fired}
    assert found.verdict == "inconclusive"
    assert "the outputs are probabilities" in found.sentence


def test_a_gradient_that_masks_counts_more_than_a_network_that_is_not_robust(nets, run):
    found = run(nets.unaligned)
    assert found.worst_case[found.judged_at][1][0] < found.clean_accuracy / 2
    assert found.verdict == "masked"


@pytest.mark.parametrize("attacks", [["random_signs"], ["fgsm"], [{"type": "pgd", "gradient": "feedback"}]])
def test_without_pgd_along_the_true_gradient_there_is_no_result(nets, run, attacks):
    found = run(nets.unaligned, attacks)
    assert found.verdict == "inconclusive"
    assert "PGD along the true gradient was not run" in found.sentence
    strongest_stands_in_the_sentence(found)


def test_noise_in_the_network_is_for_the_reader_where_an_attack_averages_over_it(nets, run):
    found = run(Wrapped(nets.plain, after=noisy), ["pgd", {"type": "eot_pgd", "samples": 3}], [0.1])
    (check,) = (check for check in found.fired if check.name == "the network is not deterministic")
    assert check.about == "reader"
    assert found.verdict == "not robust"


def test_a_step_size_that_the_verdict_does_not_rest_on_is_for_the_reader(nets, run):
    weak = {"type": "pgd", "steps": 10, "step_size": 0.0001}
    found = run(nets.plain, [{"type": "pgd", "steps": 20}, weak], [0.1])
    (check,) = found.fired
    assert (check.name, check.about) == ("steps x step size is smaller than epsilon", "reader")
    assert found.verdict == "not robust"


def test_fewer_than_ten_images_are_noise():
    """The sign test at 0.001, where all of them speak for the same side."""
    survives = torch.ones(50, dtype=torch.bool)
    for broken, more_than_noise in ((0, False), (9, False), (10, True), (50, True)):
        weaker = survives.clone()
        weaker[:broken] = False
        assert measurement.beats(weaker, survives) == more_than_noise
        assert not measurement.beats(survives, weaker)
