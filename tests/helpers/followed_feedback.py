"""Networks under the rules whose B follows W after each update."""

import pytest
import torch
from networks import batch, labels, mlp
from rule_names import RULES
from torch import nn
from torch.nn import functional as F

import biotorch

FOLLOWING = [name for name in RULES if biotorch.rules.get(name).has_update()]
following = pytest.mark.parametrize("rule", FOLLOWING)
RATE = 0.05


def network(rule: str, **options) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = mlp().double()
    return biotorch.convert(model, rule, seed=1, **options)


def backward(model, step: int, run=None) -> None:
    F.cross_entropy((run or model)(batch().double() + step), labels()).backward()


def by_hand(model):
    @torch.no_grad()
    def step():
        for parameter in model.parameters():
            parameter.sub_(RATE * parameter.grad)

    return step
