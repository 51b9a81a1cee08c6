"""An update is a change of W, whoever made it: the same B after n of them, and what is none changes nothing."""

import copy

import pytest
import torch
from followed_feedback import FOLLOWING, RATE, backward, by_hand, following, network
from networks import batch, labels
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

import biotorch
from biotorch.testing import assert_close, assert_identical


def numbers(model) -> set[int]:
    return {connection.updates for connection in biotorch.layers.connections(model).values()}


# However they are made ---------------------------------------------------------------------------


def by_optimizer(kind=torch.optim.SGD, **settings):
    def make(model):
        optimizer = kind(model.parameters(), lr=RATE, **settings)
        return optimizer.step

    return make


def by_compiled_step(model):
    return torch.compile(torch.optim.SGD(model.parameters(), lr=RATE).step, backend="aot_eager")


def by_masters(model):
    masters = [parameter.detach().clone().requires_grad_() for parameter in model.parameters()]
    optimizer = torch.optim.SGD(masters, lr=RATE)

    @torch.no_grad()
    def step():
        for master, parameter in zip(masters, model.parameters(), strict=True):
            master.grad = parameter.grad.clone()
        optimizer.step()
        for master, parameter in zip(masters, model.parameters(), strict=True):
            parameter.copy_(master)

    return step


class Lookahead(torch.optim.Optimizer):
    """With a memory that leaves every weight where the inner optimizer has put it, but writes them all."""

    def __init__(self, inner):
        super().__init__(inner.param_groups, {})
        self.inner = inner

    @torch.no_grad()
    def step(self, closure=None):
        self.inner.step()
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(1).sub_(1)


def by_lookahead(model):
    return Lookahead(torch.optim.SGD(model.parameters(), lr=RATE)).step


def by_data(model):
    def step():
        for parameter in model.parameters():
            parameter.data.sub_(RATE * parameter.grad)
        biotorch.updated(model)

    return step


class OldStyle(torch.optim.Optimizer):
    """Writes through `.data`, as many optimizers from before torch 0.4 do."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.sub_(group["lr"] * parameter.grad)


WAYS = {
    "plain": by_optimizer(foreach=False),
    "foreach": by_optimizer(foreach=True),
    "fused": by_optimizer(fused=True),
    "compiled": by_compiled_step,
    "hand": by_hand,
    "masters": by_masters,
    "Lookahead": by_lookahead,
    "old style": by_optimizer(OldStyle),
    "told": by_data,
}


@following
@pytest.mark.parametrize("constrain", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_b_after_n_updates_is_the_same_however_they_were_made(rule, way, constrain):
    model, plain = (network(rule, constrain_weights=constrain) for _ in range(2))
    step, optimizer = WAYS[way](model), torch.optim.SGD(plain.parameters(), lr=RATE)
    for number in range(4):
        for each in (model, plain):
            each.zero_grad()
            backward(each, number)
        step()
        optimizer.step()
        if way == "masters" and constrain:  # what W was rescaled by, masters do not know
            assert numbers(model) == numbers(plain)
            return
    assert_close(model.state_dict(), plain.state_dict(), rtol=1e-9, atol=1e-12)


@following
def test_two_forwards_and_micro_batches_are_no_updates(rule):
    model, plain = network(rule), network(rule)
    optimizers = [torch.optim.SGD(each.parameters(), lr=RATE) for each in (model, plain)]
    for number in range(3):
        for each, optimizer in zip((model, plain), optimizers, strict=True):
            optimizer.zero_grad()
            for part in range(2):
                backward(each, number + part)
                if each is model:
                    with torch.no_grad():
                        each(batch().double())
                    each(batch().double())
            optimizer.step()
    assert_identical(model.state_dict(), plain.state_dict())


@following
def test_a_perturbation_is_no_update_not_even_before_the_first_step(rule):
    """Sharpness-aware minimisation: up the gradient, a second gradient there, back, and a step."""
    model = network(rule)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    seen = []
    for number in range(3):
        before = [parameter.detach().clone() for parameter in model.parameters()]
        backward(model, number)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * parameter.grad)
        optimizer.zero_grad()
        feedback = model[2].feedback.clone()
        backward(model, number)
        assert torch.equal(model[2].feedback, feedback)
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), before, strict=True):
                parameter.copy_(value)
        optimizer.step()
        optimizer.zero_grad()
        seen.append(model[2].feedback_draws)
    assert seen == [1, 2, 3]


def loading(model):
    model.load_state_dict({name: value + 0 for name, value in model.state_dict().items()})


def casting(model):
    model.float().double()


def copying(model):
    return copy.deepcopy(model)


@torch.no_grad()
def initialising(model):
    nn.init.normal_(model[0].weight)


@following
@pytest.mark.parametrize("way", [loading, casting, copying, initialising])
@pytest.mark.parametrize("after", ["conversion", "a gradient"])
def test_what_is_no_update_changes_no_b(rule, way, after):
    model = network(rule)
    if after == "a gradient":
        if way is initialising:
            pytest.skip("nothing tells it from an update by hand")
        backward(model, 0)
    other = way(model) or model
    other(batch().double())
    assert numbers(other) == {0}
    model.zero_grad()


# Who sees it -------------------------------------------------------------------------------------


@following
@pytest.mark.parametrize("constrain", [False, True])
def test_whoever_looks_sees_b_and_w_as_they_are_after_the_update(rule, constrain):
    def updated() -> nn.Sequential:
        model = network(rule, constrain_weights=constrain)
        backward(model, 0)
        torch.optim.SGD(model.parameters(), lr=RATE).step()
        return model

    settled = updated()
    settled(batch().double())
    expected = {name: value.clone() for name, value in settled.state_dict().items()}
    assert numbers(settled) == {1}
    assert_identical(updated().state_dict(), expected)
    assert_identical(copy.deepcopy(updated()).state_dict(), expected)
    assert biotorch.metrics.alignment_angles(updated()) == biotorch.metrics.alignment_angles(settled)
    assert biotorch.metrics.norm_ratios(updated()) == biotorch.metrics.norm_ratios(settled)
    model = updated()
    assert torch.equal(model[2].feedback, settled[2].feedback)
    biotorch.audit(model, batch().double())
    assert_identical(model.state_dict(), expected)
    model = updated()
    with torch.no_grad():
        assert torch.equal(model.eval()(batch().double()), settled.eval()(batch().double()))


@following
def test_an_audit_and_metrics_are_no_updates_and_hide_none(rule):
    model, plain = network(rule), network(rule)
    for each in (model, plain):
        optimizer = torch.optim.SGD(each.parameters(), lr=RATE)
        for number in range(3):
            optimizer.zero_grad()
            backward(each, number)
            optimizer.step()
            if each is model:
                biotorch.audit(each, batch().double())
                biotorch.metrics.gradient_alignment(each, F.cross_entropy, batch().double(), labels())
    assert_identical(model.state_dict(), plain.state_dict())


# Computed weights, other networks ----------------------------------------------------------------


@pytest.mark.parametrize("rule", [*FOLLOWING, "kp", "dkp"])
@pytest.mark.parametrize(
    "compute",
    [parametrizations.weight_norm, lambda layer: prune.l1_unstructured(layer, "weight", 0.5)],
    ids=["norm", "prune"],
)
def test_a_computed_weight_is_refused_at_its_own_forward_and_concerns_nobody_else(rule, compute):
    model, plain = network(rule), nn.Linear(4, 2)
    compute(model[2])
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    plain(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match=r"^2: its weight is computed.*prune\.remove"):
        model(batch().double())
    if compute is parametrizations.weight_norm:
        torch.nn.utils.parametrize.remove_parametrizations(model[2], "weight")
    else:
        prune.remove(model[2], "weight")
    model(batch().double()).sum().backward()  # nothing trained so far is lost


@pytest.mark.parametrize("rule", ["fa", "usf"])
def test_a_rule_whose_b_stays_works_with_a_computed_weight_and_gives_it_back(rule):
    model = network(rule)
    parametrizations.weight_norm(model[2])
    backward(model, 0)
    assert model[2].parametrizations.weight.original1.grad.abs().sum() > 0
    expected = model(batch().double())
    assert torch.equal(biotorch.revert(model)(batch().double()), expected)
    torch.nn.utils.parametrize.remove_parametrizations(model[2], "weight")
    assert type(model[2]) is nn.Linear
    torch.testing.assert_close(model(batch().double()), expected)


@following
def test_an_update_of_one_network_is_none_of_another(rule):
    first, second = network(rule), network(rule)
    for each in (first, second):
        backward(each, 0)
    torch.optim.SGD(first.parameters(), lr=RATE).step()
    second(batch().double())
    assert (numbers(first), numbers(second)) == ({0}, {0})  # settled at the next use
    first(batch().double())
    assert (numbers(first), numbers(second)) == ({1}, {0})
