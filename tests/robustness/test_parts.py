"""Parts of a network that classify alone are found, wherever it holds them, and attacked."""

import pytest
import torch
from studies import network
from torch import nn

from biotorch.robustness.measurement import TWIN
from biotorch.robustness.parts import parts_that_classify


def rounded(images):
    return (4 * images).round() / 4


class Twin(nn.Module):
    """A part with the name of a study's other source."""

    def __init__(self, inside):
        super().__init__()
        self.twin = inside

    def forward(self, images):
        return self.twin(rounded(images))


class InAList(nn.Module):
    def __init__(self, inside):
        super().__init__()
        self.held = [{"network": inside}]

    def forward(self, images):
        return self.held[0]["network"](rounded(images))


class Subclass(nn.Sequential):
    def forward(self, images):
        return super().forward(rounded(images))


def in_a_closure(inside):
    class Closed(nn.Module):
        def forward(self, images):
            return inside(rounded(images))

    return Closed()


def hooked(inside):
    inside.register_forward_pre_hook(lambda module, inputs: rounded(inputs[0]))
    return inside


def registered(inside):
    return nn.Sequential(nn.Identity(), nn.Threshold(0.3, 0.0), inside)


def test_parts_are_found_wherever_they_are_held(data):
    """Each leads to the outputs of the network without its defence."""
    images, labels = data
    with torch.no_grad():
        expected = network()(images)
    for make in (Twin, InAList, in_a_closure, hooked, registered, lambda inside: Subclass(*inside)):
        found = parts_that_classify(make(network()), images, labels)
        assert len(found) == 1, make
        assert TWIN not in found
        with torch.no_grad():
            assert torch.equal(next(iter(found.values()))(images), expected)


@pytest.mark.parametrize("order", [(0, 7), (7, 0)])
def test_parts_of_one_class_and_in_half_precision_are_told_apart(data, order):
    images, labels = data

    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.held = [network(seed).half() for seed in order]
            self.good = self.held[order.index(0)]

        def forward(self, images):
            return self.good(rounded(images))

    found = parts_that_classify(Several(), images, labels)
    right = [int((part(images.half()).argmax(1) == labels).sum()) for part in found.values()]
    assert max(right) >= len(labels) - 5  # all but those that the fixture labels wrongly


def test_a_network_without_a_defence_has_none(data):
    images, labels = data
    assert parts_that_classify(network(), images, labels) == {}
    assert parts_that_classify(nn.Sequential(nn.Identity(), network()), images, labels) == {}  # the same outputs

    class Beside(nn.Module):
        """With a part that answers, but hardly ever right."""

        def __init__(self):
            super().__init__()
            self.network, self.other = network(), nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
            rare = labels.bincount(minlength=3).argmin()
            self.other[1].weight.data.zero_()
            self.other[1].bias.data = nn.functional.one_hot(rare, 3).float()

        def forward(self, images):
            return self.network(images)

    assert parts_that_classify(Beside(), images, labels) == {}
