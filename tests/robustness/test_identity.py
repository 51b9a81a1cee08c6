"""The identity of a network, by which a study finds its stored measurements."""

import functools

import numpy as np
import pytest
import torch
from torch import nn

import biotorch
from biotorch._files import state_hash
from biotorch.robustness import Detector, straight_through, study
from biotorch.robustness.nearest import find_smallest
from biotorch.robustness.runner import identity_of

LEVELS = 7


def flat(layer=None):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3), *([] if layer is None else [layer]))


def doubt(images, outputs):
    return 1 - outputs.softmax(1).amax(1)


def levels(number, images):
    return (images * number).round() / number


class Score:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, images, outputs):
        return self.scale * outputs.amax(1)


class Plain(nn.Module):
    def __init__(self, setting):
        super().__init__()
        self.setting = setting

    def scaled(self, images):
        return images * self.setting


class Extra(Plain):
    def get_extra_state(self):
        return {"setting": self.setting}

    def set_extra_state(self, state):
        self.setting = state["setting"]

    def forward(self, images):
        return images


def with_global(value):
    """A function whose only difference is a global variable."""
    space = {"LEVELS": value}
    exec("def preprocess(images): return (images * LEVELS).round() / LEVELS", space)
    return straight_through(space["preprocess"])


def attention(heads):
    torch.manual_seed(0)
    return nn.MultiheadAttention(8, heads)


#: What the repr and the tensors of a network do not tell, as a function of a number.
HIDDEN = {
    "threshold": lambda each: Detector(flat(), doubt, each / 10),
    "score": lambda each: Detector(flat(), Score(each), 0.5),
    "closure": lambda each: straight_through(lambda images: (images * each).round() / each),
    "global": with_global,
    "default": lambda each: straight_through(lambda images, top=each: (images * top).round() / top),
    "code": lambda each: straight_through([torch.sin, lambda x: x.cos(), lambda x: x.sin(), lambda x: x + 2][each]),
    "nested": lambda each: straight_through(lambda images: map(lambda row: row * each, images)),
    "partial": lambda each: straight_through(functools.partial(levels, each)),
    "method": lambda each: straight_through(Plain(each).scaled),
    "number": Plain,
    "NumPy": lambda each: Plain(np.float32(each)),
    "array": lambda each: Plain(np.full(3, each)),
    "tensor": lambda each: Plain(torch.full((3,), each)),
    "text": lambda each: Plain(str(each)),
    "switch": lambda each: Plain(each == 1),
    "list": lambda each: Plain([1, {"a": (each, None)}]),
    "hidden network": lambda each: Plain([flat(Plain(each))]),
    "extra state": Extra,
    "heads": attention,
    "heads, converted": lambda each: biotorch.convert(attention(each), "fa", seed=1),
}


@pytest.mark.parametrize("what", HIDDEN)
def test_what_tensors_and_repr_do_not_show_is_told_apart(what):
    one, same, other = (identity_of(HIDDEN[what](each)) for each in (1, 1, 2))
    assert one == same != other


def test_the_identity_of_usual_networks_is_that_of_stored_measurements():
    networks = [flat(nn.Softplus(beta=3)), biotorch.convert(flat(), "fa", seed=1), biotorch.models.LeNetMNIST()]
    for network in networks:
        tensors = {**network.state_dict(), **dict(network.named_buffers())}
        assert identity_of(network) == f"{state_hash(tensors)} {network!r}"


def test_a_network_that_holds_itself():
    def one(setting):
        network = Plain(setting)
        network.members = [network, lambda: network]
        return identity_of(network)

    assert one(1) == one(1) != one(2)


def test_a_study_with_a_folder_tells_thresholds_apart(tmp_path):
    images = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    data = images, flat()(images).argmax(1)

    def accuracy(threshold, folder):
        model = Detector(flat(), doubt, threshold)
        return study(model, data, ["fgsm"], [0.1], abstain=3, folder=folder).worst_case

    assert accuracy(0.9, tmp_path) == accuracy(0.9, None) != accuracy(0.1, None) == accuracy(0.1, tmp_path)


@pytest.mark.parametrize("kind", ["extra state", "quantised"])
@pytest.mark.filterwarnings("ignore")  # torch has deprecated its quantisation
def test_a_study_of_networks_whose_state_is_not_only_tensors(kind, tmp_path):
    model = flat(Extra(1)) if kind == "extra state" else torch.ao.quantization.quantize_dynamic(flat().eval())
    images = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    found = study(model, (images, model(images).argmax(1)), ["fgsm"], [0.1], folder=tmp_path)
    assert found.clean_accuracy == 100


def test_smallest_perturbations_are_not_those_of_another_network(tmp_path):
    """Equal weights, behind images of other numbers of levels."""
    torch.manual_seed(0)
    images, inside = torch.rand(8, 1, 4, 4), nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    labels = inside(images).argmax(1)
    few, many = (nn.Sequential(straight_through(lambda x, n=n: (n * x).round() / n), inside) for n in (1, 255))
    first, second = (find_smallest(each, images, labels, folder=tmp_path) for each in (few, many))
    assert [each.identity for each in first] != [each.identity for each in second]
    assert find_smallest(few, images, labels, folder=tmp_path) == first
