"""The verdict of a study follows by rule from its checks."""

import threading

import pytest
import torch
from deceiving_networks import Wrapped, noisy, strongest_stands_in_the_sentence, train
from torch import nn

from biotorch.robustness import measurement, study


@pytest.fixture(scope="module")
def linear(digits):
    """Linear, with margins that a thousandth per pixel cannot move."""
    torch.manual_seed(0)
    return train(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), digits[0])


SMALL = [0.0005, 0.001, 0.002]


def test_a_network_is_robust_once_further_attacks_have_confirmed_it(linear, run):
    found = run(linear, epsilons=SMALL)
    assert found.verdict == "robust", str(found)
    assert found.judged_at == 0.001
    assert all(check.ran for check in found.checks)
    assert {each.name for each in found.measurements} == {"random_signs", "fgsm", "pgd", "multi_targeted", "square"}
    assert "At epsilon 0.002, pgd steps=20 leaves" in found.sentence
    strongest_stands_in_the_sentence(found)


@pytest.mark.parametrize(("count", "reason"), [(9, "with fewer than 10"), (60, "needs 100 images")])
def test_few_images_make_no_network_robust(linear, digits, count, reason):
    images, labels = digits[1]
    found = study(linear, (images[:count], labels[:count]), ["pgd"], SMALL)
    assert found.verdict == "inconclusive"
    assert reason in found.sentence
    assert "Checks that could not run:" in str(found)
    strongest_stands_in_the_sentence(found)


def test_images_without_rows_have_no_black_box(linear, digits):
    """Square needs rows and columns, so that a network of vectors cannot be confirmed."""
    images, labels = digits[1]
    found = study(linear, (images.flatten(1), labels), ["pgd"], SMALL)
    assert found.verdict == "inconclusive"
    assert "Square with 1,000 queries did not run" in found.sentence


def test_half_of_the_accuracy_within_the_interval_is_no_result(run, linear):
    found = run(linear, ["pgd"], [0.095])
    left, (low, _) = found.worst_case[found.judged_at]
    assert low < found.clean_accuracy / 2 <= left, str(found)  # the epsilon is chosen for that
    assert (found.verdict, "More images are needed" in found.sentence) == ("inconclusive", True)


def test_a_check_does_not_save_a_network_that_is_broken(nets, run):
    found = run(Wrapped(nets.plain, after=lambda outputs: outputs.softmax(1)))
    assert found.verdict == "not robust"
    assert "Perhaps even less is left, because a check fired: the outputs are no logits" in found.sentence


@pytest.mark.parametrize(
    ("after", "about"),
    [
        (lambda outputs: outputs.softmax(1), "attack"),
        (lambda outputs: outputs.softmax(1).half().float(), "attack"),
        (torch.sigmoid, "attack"),
        (lambda outputs: outputs.log_softmax(1), "reader"),
        (lambda outputs: outputs, None),
    ],
    ids=["softmax", "half", "sigmoid", "log-softmax", "logits"],
)
def test_outputs_that_are_no_logits_are_recognised(nets, run, after, about):
    found = run(Wrapped(nets.plain, after=after), ["random_signs"], [0.1])
    (check,) = (check for check in found.checks if check.name == "the outputs are no logits")
    assert (check.about if check.fired else None) == about, check.sentence


def test_a_gradient_that_masks_counts_more_than_a_check_of_the_attacks(nets, run):
    found = run(Wrapped(nets.unaligned, after=lambda outputs: outputs.softmax(1)))
    assert {"attack", "feedback"} <= {check.about for check in found.fired}
    assert found.verdict == "masked"


def test_a_gradient_that_masks_counts_more_than_a_network_that_is_not_robust(nets, run):
    found = run(nets.unaligned)
    assert found.worst_case[found.judged_at][1][0] < found.clean_accuracy / 2
    assert found.verdict == "masked"


@pytest.mark.parametrize("attacks", [["random_signs"], [{"type": "pgd", "gradient": "feedback"}]])
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


def test_a_weak_black_box_does_not_count(linear, run):
    """Square with tiny patches is no evidence, whatever its number of queries: the study adds its own."""
    weak = {"type": "square", "queries": 1000, "p_init": 0.001}
    found = run(linear, ["pgd", weak], SMALL)
    assert "square queries=1000 p_init=0.8 loss=margin" in {each.label for each in found.measurements}
    assert found.verdict == "robust"


def test_data_in_the_order_of_their_classes_are_compared_across_batches(linear, digits):
    images, labels = digits[1]
    order = labels.argsort(stable=True)
    found = study(linear, (images[order], labels[order]), ["pgd"], SMALL, batch_size=10)
    assert found.verdict == "robust", str(found)


class Locked(nn.Module):
    """With an attribute that cannot be copied, and a weight with a gradient history."""

    def __init__(self, network):
        super().__init__()
        self.network, self.lock = network, threading.Lock()
        self.scale = torch.ones(1, requires_grad=True) * 1

    def forward(self, images):
        with self.lock:
            return self.scale * self.network(images)


def test_networks_that_are_hard_to_copy_can_be_robust(linear, run):
    found = run(Locked(linear), ["pgd"], SMALL)
    assert found.verdict == "robust", str(found)


def test_a_network_that_takes_no_single_image_gets_a_reason(linear, run):
    class Pairs(nn.Module):
        def forward(self, images):
            assert len(images) > 1
            return linear(images)

    found = run(Pairs(), ["random_signs", {"type": "pgd", "steps": 2, "stop_at_success": False}], SMALL)
    (check,) = (check for check in found.checks if check.name == "the answer depends on the other images")
    assert not check.ran
    assert check.sentence == "the network takes no single image"
