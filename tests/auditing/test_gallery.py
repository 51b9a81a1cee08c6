"""Verdicts on modules of a known truth: every disguise is found, and no honest module is accused."""

import warnings

import pytest
import torch
from disguised import DISGUISED, TOKENS, WIDTH
from honest import HONEST
from torch import nn

import biotorch


def audited(kind, rule="fa"):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), kind(), nn.Tanh(), nn.Linear(WIDTH, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", biotorch.ConversionWarning)
        biotorch.convert(net, rule)
    return biotorch.audit(net, torch.randn(4, TOKENS, WIDTH), shortcuts=False)


@pytest.mark.parametrize("kind", DISGUISED.values(), ids=DISGUISED)
def test_backpropagation_in_disguise_is_weight_transport(kind):
    found = audited(kind).layers
    assert {name.partition(".")[0] for name, verdict in found.items() if verdict != "nothing"} == {"2"}
    assert set(found.values()) <= {"nothing", "weights", "unknown"}


@pytest.mark.parametrize("kind", HONEST.values(), ids=HONEST)
def test_an_honest_module_transports_nothing(kind):
    assert audited(kind).leak == 0.0


def test_layers_that_make_positions_transport_what_their_rule_says():
    found = audited(HONEST["ContinuousPositions"], "usf").layers
    assert [found[name] for name in ("0", "2.qkv", "2.net.2", "4")] == ["signs"] * 4
