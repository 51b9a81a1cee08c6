"""Studies: what they keep, count and tell."""

import json
import math
import random
import warnings

import numpy as np
import pytest
import torch
from studies import EPSILONS, N, network, quick
from torch import nn

import biotorch
from biotorch.robustness import FGSM, Display, Normalised, RandomSigns
from biotorch.robustness.measurement import Measurement, interval


class Counting(Display):
    """Keeps what it is told; interrupts at the start of an attack if wanted."""

    def __init__(self, interrupt_at=None):
        self.left, self.seconds, self.started, self.done, self.batches = [], None, [], [], []
        self.interrupt_at = interrupt_at

    def planned(self, attacks, seconds):
        self.left, self.seconds = list(attacks), seconds

    def attack(self, attack, images):
        if len(self.started) == self.interrupt_at:
            raise KeyboardInterrupt
        self.started.append((attack, images))

    def batch(self, done):
        self.batches.append(done)

    def measured(self, measurement):
        self.done.append(measurement)


def told(found):
    """All that a study says, but how long it took."""
    values = json.loads(json.dumps(found.to_json(), allow_nan=False))
    del values["seconds"]
    for each in values["measurements"]:
        del each["seconds"]
    return values


# Equal figures, and files ------------------------------------------------------------------------------


def test_equal_seeds_give_equal_figures(converted, data):
    first, second = quick(converted, data, seed=3), quick(converted, data, seed=3)
    assert told(first) == told(second)
    assert [each.robust for each in first.measurements] == [each.robust for each in second.measurements]


def test_another_call_measures_nothing_again(converted, data, tmp_path):
    display = Counting()
    first = quick(converted, data, folder=tmp_path, display=display)
    assert len(display.started) == len(display.left) == len(display.done) == len(list(tmp_path.iterdir()))
    assert display.seconds > 0
    assert set(display.batches) == {N}
    again = Counting()
    second = quick(converted, data, folder=str(tmp_path), display=again)
    assert not again.started
    assert not again.left
    assert again.seconds == 0
    assert again.done == display.done
    assert first.to_json() == second.to_json()
    assert told(quick(converted, data)) == told(first)


def test_what_is_missing_is_measured(converted, data, tmp_path):
    quick(converted, data, attacks=["fgsm"], folder=tmp_path)
    display = Counting()
    found = quick(converted, data, attacks=["random_signs", "fgsm"], folder=tmp_path, display=display)
    assert {attack.name for attack, _ in display.started} == {"random_signs"}
    assert told(found) == told(quick(converted, data, attacks=["random_signs", "fgsm"]))


def test_an_interruption_keeps_what_is_finished(converted, data, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        quick(converted, data, folder=tmp_path, display=Counting(interrupt_at=5))
    assert len(list(tmp_path.glob("*.json"))) == len(list(tmp_path.iterdir())) == 5
    display = Counting()
    found = quick(converted, data, folder=tmp_path, display=display)
    assert len(display.started) == len(found.measurements) - 5
    assert told(found) == told(quick(converted, data))


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: "{}",
        lambda text: text.replace('"format": 1', '"format": 99'),
        lambda text: text.replace('"robust"', '"rubbish"'),
        lambda text: text.replace('"interval"', '"interval": null, "was"'),
    ],
    ids=["cut", "empty", "list", "object", "format", "key", "interval"],
)
def test_a_damaged_file_is_measured_again(converted, data, tmp_path, damage):
    first = quick(converted, data, attacks=["fgsm"], folder=tmp_path)
    path = sorted(tmp_path.iterdir())[0]
    whole = path.read_text()
    assert damage(whole) != whole
    path.write_text(damage(whole))
    display = Counting()
    with pytest.warns(UserWarning, match="damaged or of another version"):
        second = quick(converted, data, attacks=["fgsm"], folder=tmp_path, display=display)
    assert len(display.started) == 1
    assert told(first) == told(second)
    Measurement.from_json(json.loads(path.read_text()))


def rebuilt(activation):
    model = network()
    model[2] = activation
    return model


def other_image(data):
    images = data[0].clone()
    images[-1, 0, 0, 0] = 1 - images[-1, 0, 0, 0]
    return images, data[1]


def other_label(data):
    labels = data[1].clone()
    labels[-1] = (labels[-1] + 1) % 3
    return data[0], labels


def other_weight():
    model = network()
    with torch.no_grad():
        model[1].weight[0, 0] += 1e-3
    return model


OTHERS = {
    "image": lambda data: (network(), other_image(data), {}),
    "label": lambda data: (network(), other_label(data), {}),
    "fewer images": lambda data: (network(), (data[0][:-1], data[1][:-1]), {}),
    "seed": lambda data: (network(), data, {"seed": 1}),
    "batch size": lambda data: (network(), data, {"batch_size": 16}),
    "weight": lambda data: (other_weight(), data, {}),
    "activation": lambda data: (rebuilt(nn.ReLU()), data, {}),
    "option of a layer": lambda data: (rebuilt(nn.Softplus(beta=3)), data, {}),
    "normalisation": lambda data: (Normalised(network(), [0.4], [0.5]), data, {}),
    "norm": lambda data: (network(), data, {"norm": "l2"}),
    "steps": lambda data: (network(), data, {"attacks": ["fgsm", {"type": "pgd", "steps": 8}]}),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_file_is_never_that_of_another_study(data, tmp_path, what):
    """But that a file of FGSM does not depend on the steps of PGD."""
    model, others, settings = OTHERS[what](data)
    start = {"attacks": ["fgsm", {"type": "pgd", "steps": 4}], "folder": tmp_path}
    before = Normalised(network(), [0.5], [0.5]) if what == "normalisation" else network()
    before = rebuilt(nn.Softplus(beta=1)) if what == "option of a layer" else before
    quick(before, data, **start)
    display = Counting()
    found = quick(model, others, **{**start, **settings}, display=display)
    again = {attack.name for attack, _ in display.started}
    assert len(display.started) == len(found.measurements) - (len(EPSILONS) if what == "steps" else 0)
    assert again == ({"pgd"} if what == "steps" else {"fgsm", "pgd"})
    assert told(found) == told(quick(model, others, **{**start, **settings, "folder": None}))


def test_rules_of_equal_states_do_not_share_files(data, tmp_path):
    """The signs of the weights, and the gradient of the weights themselves, need no feedback that is kept."""
    folders = {"folder": tmp_path, "attacks": [{"type": "pgd", "steps": 4, "gradient": "feedback"}]}
    quick(network(), data, **folders)
    display = Counting()
    found = quick(biotorch.convert(network(), "usf", seed=1), data, **folders, display=display)
    assert len(display.started) == len(found.measurements) == len(EPSILONS)


def test_another_source_is_another_file(data, tmp_path):
    folders = {"folder": tmp_path, "attacks": ["pgd"]}
    quick(network(), data, source=network(1), **folders)
    display = Counting()
    quick(network(), data, source=network(2), **folders, display=display)
    assert {attack.name for attack, _ in display.started} == {"transfer", "transfer_to"}


# The worst case ----------------------------------------------------------------------------------------


def bits(measurement):
    return torch.tensor([each == "1" for each in measurement.robust])


def test_the_worst_case_is_that_of_every_image_up_to_each_epsilon(converted, data):
    found = quick(converted, data, source=network(1))
    assert list(found.worst_case) == list(EPSILONS)
    with torch.no_grad():
        clean = converted(data[0]).argmax(1) == data[1]
    assert found.clean_accuracy == 100 * float(clean.double().mean())
    for epsilon, (left, bounds) in found.worst_case.items():
        withstands = clean.clone()
        for each in found.measurements:
            if each.epsilon <= epsilon and each.name != "transfer_to":
                withstands &= bits(each)
        assert left == pytest.approx(100 * float(withstands.double().mean()))
        assert bounds == interval(int(withstands.sum()), N)
    lefts = [left for left, _ in found.worst_case.values()]
    assert lefts == sorted(lefts, reverse=True)


def test_an_image_that_only_a_smaller_epsilon_breaks_is_broken(data):
    class Shy(RandomSigns):
        """Does something at the smallest epsilon alone."""

        def perturb(self, attempt, index):
            images = attempt.images[index]
            return FGSM(self.model, self.epsilon).perturb(attempt, index) if self.epsilon == 0.3 else images

    found = quick(network(), data, attacks=[Shy], epsilons=[0.3, 0.4, 0.5])
    first = next(each for each in found.measurements if each.epsilon == 0.3)
    assert first.robust_accuracy < found.clean_accuracy
    assert {left for left, _ in found.worst_case.values()} == {first.robust_accuracy}


def test_examples_of_the_source_count_and_those_for_it_do_not(data):
    """The source is broken by them; the network itself is not by what breaks the source."""
    source = network(1)
    found = quick(network(), data, attacks=["pgd"], source=source)
    rows = {(each.name, each.epsilon): each for each in found.measurements}
    for epsilon in EPSILONS:
        assert rows["transfer", epsilon].clean_accuracy == found.clean_accuracy
        with torch.no_grad():
            right = source(data[0]).argmax(1) == data[1]
        assert rows["transfer_to", epsilon].clean_accuracy == 100 * float(right.float().mean())
        assert found.worst_case[epsilon][0] > rows["transfer_to", epsilon].robust_accuracy or epsilon > EPSILONS[0]
    markdown = found.table.markdown()
    assert "transfer from the twin" in markdown
    assert "transfer to the twin (its accuracy)" in markdown


# Few pixels --------------------------------------------------------------------------------------------


def test_pixels_have_columns_of_their_own_and_are_no_radius(data):
    found = quick(
        network(),
        data,
        attacks=["pgd", *({"type": "few_pixel", "pixels": k, "steps": 1, "population": 4} for k in (1, 2))],
    )
    assert found.table.header[-2:] == ["1 pixels", "2 pixels"]
    rows = {row[0].split(" steps")[0]: row[-2:] for row in found.table.rows}
    assert rows["few_pixel pixels=1"][1] == "-" != rows["few_pixel pixels=1"][0]
    assert rows["few_pixel pixels=2"][0] == "-" != rows["few_pixel pixels=2"][1]
    assert found.judged_at < 1
    assert "few-pixel has no ε" in str(found)


# Errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attacks": ["pdg"]}, r"unknown attack 'pdg'.*Did you mean 'pgd'"),
        ({"attacks": [{"type": "fgms"}]}, r"unknown attack 'fgms'.*Did you mean 'fgsm'"),
        ({"attacks": [{"type": "pgd", "stepz": 3}]}, r"pgd takes no stepz; it takes .*steps"),
        ({"attacks": [{"type": "pgd", "epsilon": 0.1}]}, r"pgd takes no epsilon.*the study sets epsilon"),
        ({"attacks": [{"type": "pgd", "steps": 0}]}, r"steps: a whole number from 1 on"),
        ({"attacks": [{"steps": 3}]}, r"a name, a class or"),
        ({"attacks": [7]}, r"a name, a class or .* not 7"),
        ({"attacks": [{"type": "pgd", "gradient": "both"}]}, r"gradient: 'true' or 'feedback' is needed, not 'both'"),
        ({"epsilons": [0, 0.0]}, r"epsilons: at least one above 0"),
        ({"epsilons": []}, r"epsilons: at least one above 0"),
        ({"epsilons": [-0.1]}, r"epsilon: a number from 0 on"),
        ({"norm": "l3"}, r"norm: .* not 'l3'"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_runs(data, tmp_path, settings, message):
    display = Counting()
    with pytest.raises(ValueError, match=message):
        quick(network(), data, display=display, **settings)
    assert not display.started


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images, labels: (3 * images, labels), r"values from 0 to 1 .*Normalised"),
        (lambda images, labels: (images - 0.5, labels), r"values from 0 to 1"),
        (lambda images, labels: (images * math.nan, labels), r"values from 0 to 1"),
        (lambda images, labels: (images[:0], labels[:0]), r"n > 0 is needed"),
        (lambda images, labels: ((255 * images).byte(), labels), r"in float32 are needed, not torch.uint8"),
        (lambda images, labels: (images, labels[:-1]), r"labels: .*shape \(40,\)"),
        (lambda images, labels: (images, labels.float()), r"labels: whole numbers .*int64"),
        (lambda images, labels: (images, labels[:, None]), r"labels: .*shape \(40,\)"),
        (lambda images, labels: (images, labels - 3), r"labels: "),
    ],
    ids=["large", "negative", "nan", "none", "bytes", "fewer", "floats", "column", "negative labels"],
)
def test_bad_images(data, change, message):
    display = Counting()
    with pytest.raises(ValueError, match=message):
        quick(network(), change(*data), display=display)
    assert not display.left


# Words and figures -------------------------------------------------------------------------------------


def test_the_report(converted, data):
    found = quick(converted, data)
    found_first = str(found)
    assert found_first.startswith(f"Verdict: {found.verdict}. {found.sentence}")
    table = found.table.markdown()
    assert found_first.index(table) < found_first.index("Checks that did not fire:")
    for check in found.checks:
        assert (found_first.index(check.sentence) < found_first.index(table)) == (check.fired or not check.ran)
    assert found.verdict in table
    for name in ("fgsm", "pgd steps=4", "random_signs", "strongest, image by image"):
        assert name in table
    assert table.count(f"| {N} |") == len(found.table.rows)


def test_a_network_that_is_always_wrong(data, tmp_path):
    """Has no cosine, and is nothing to attack; all of it is JSON."""
    images = data[0]
    with torch.no_grad():
        wrong = (network()(images).argmax(1) + 1) % 3
    display = Counting()
    found = quick(network(), (images, wrong), display=display, folder=tmp_path)
    assert found.verdict == "inconclusive"
    assert found.clean_accuracy == 0
    told(found)
    assert str(found)


def test_epsilon_zero_leaves_the_clean_accuracy(data):
    found = quick(network(), data, epsilons=[0, 0.1])
    assert {each.robust_accuracy for each in found.measurements if each.epsilon == 0} == {found.clean_accuracy}
    assert list(found.worst_case) == [0.1]
    told(found)


def test_the_network_and_the_random_state_are_as_before(data):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.Dropout(0.5), nn.Linear(12, 3))
    model = biotorch.convert(model, "fa", seed=1).train()
    model[2].eval()
    source, pictures = network(1), data[0].clone()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    found = quick(model, data, source=source)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(each.grad is None for each in model.parameters())
    assert torch.equal(data[0], pictures)
    assert not next(check for check in found.checks if check.name == "the network is not deterministic").fired


def test_a_study_warns_of_nothing(converted, data):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quick(converted, data)
