"""Which layer is the output of a direct rule: inferred, named, or asked for."""

import pytest
import torch
from networks import RULES, TRAINING, batch, labels, mlp
from torch import nn
from torch.nn import functional as F

import biotorch
from biotorch import ConversionError
from biotorch.layers import backpropagation, dfa

pytestmark = pytest.mark.usefixtures("targets")


class Subclass(nn.Linear):
    """May compute anything: not convertible."""


@pytest.mark.filterwarnings("ignore::biotorch.ConversionWarning")
@pytest.mark.parametrize(
    "head",
    [Subclass(8, 3), nn.LSTM(8, 4, proj_size=3), nn.LazyLinear(3)],
    ids=["subclass", "lstm", "lazy"],
)
def test_a_head_that_cannot_be_converted_is_not_replaced_by_the_layer_before_it(head):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), head)
    with pytest.raises(ConversionError, match=r"output layer cannot be inferred: the last layer is '3'.*output="):
        biotorch.convert(model, "dfa")
    assert type(model[0]) is nn.Linear
    biotorch.convert(model, "dfa", output="2")
    assert model[2].output[:3] == (0, 8, False)


@pytest.mark.parametrize("rule", RULES)
def test_an_output_that_does_not_exist_or_has_another_size_is_an_error_under_every_rule(rule):
    for wrong in ({"output": "five"}, {"output_dim": 77}, {"output": 2}, {"output": []}, {"output": [4]}):
        with pytest.raises(ConversionError, match="output"):
            biotorch.convert(mlp(), rule, **wrong)
    biotorch.convert(mlp(), rule, output="4", output_dim=3)


def test_an_output_named_twice_has_one_set_of_rows():
    model = biotorch.convert(mlp(), "dfa", output=["4", "4"])
    assert model[0].feedback.shape == (3, 6)


def test_a_network_built_by_hand_may_end_in_backpropagation():
    model = nn.Sequential(
        dfa.Linear(6, 8, output_dim=3),
        nn.ReLU(),
        dfa.Linear(8, 8, output_dim=3),
        nn.ReLU(),
        backpropagation.Linear(8, 3, output=True),
    )
    F.cross_entropy(model(batch()), labels()).backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())
    z = model(batch())
    e = torch.autograd.grad(F.cross_entropy(z, labels()), z)[0]
    h = model[:2](batch())
    hidden = torch.autograd.grad(F.cross_entropy(model[2:](h), labels()), h)[0]
    torch.testing.assert_close(hidden, e @ model[2].feedback)


def test_a_hand_built_layer_told_that_it_is_no_output_says_what_is_missing():
    model = nn.Sequential(dfa.Linear(6, 3, output_dim=3, output=False), nn.ReLU(), nn.Linear(3, 3))
    with pytest.raises(RuntimeError, match=r"did not come through the network's output layer.*output=True"):
        F.cross_entropy(model(batch()), labels()).backward()


@pytest.mark.parametrize("rule", TRAINING)
def test_a_convolution_and_a_transposed_one_may_share_their_weight(rule):
    encoder, decoder = nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 3, 3)
    decoder.weight = encoder.weight
    model = nn.Sequential(encoder, nn.ReLU(), decoder, nn.Flatten(), nn.Linear(3 * 36, 4))
    biotorch.convert(model, rule)
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    model(x).sum().backward()
    assert x.grad.abs().sum() > 0
    assert encoder.weight is decoder.weight
