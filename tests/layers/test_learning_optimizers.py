"""Whichever optimizer a user has does with a B that learns what it does with W."""

import inspect

import pytest
import torch
from learned_feedback import EXACT, backward, build, kp
from networks import batch, labels, mlp
from rule_names import without_decay
from torch import nn
from torch.nn import functional as F

import biotorch
from biotorch.testing import assert_close

#: Every optimizer of torch that takes dense gradients and no closure, with momentum and decay where it has them.
OF_TORCH = {
    name: kind
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
    if name not in ("LBFGS", "SparseAdam")
}


def pair(model) -> list[nn.Parameter]:
    return [model[2].weight, model[2].feedback]


class Lookahead(torch.optim.Optimizer):
    def __init__(self, inner, k=2, alpha=0.5):
        super().__init__(inner.param_groups, {})
        self.inner, self.k, self.alpha, self.calls = inner, k, alpha, 0
        self.slow = [p.detach().clone() for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure=None):
        self.inner.step()
        self.calls += 1
        if self.calls % self.k == 0:
            for p, slow in zip((p for g in self.param_groups for p in g["params"]), self.slow, strict=True):
                p.copy_(slow.lerp_(p, self.alpha))


class Counting(torch.optim.Optimizer):
    """Adam that counts steps in the group, as apex's FusedAdam and schedule-free optimizers do."""

    def __init__(self, parameters, lr=0.01):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["step"] = t = group.get("step", 0) + 1
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["m"], state["v"] = torch.zeros_like(p), torch.zeros_like(p)
                state["m"].lerp_(p.grad, 0.1)
                state["v"].lerp_(p.grad**2, 0.001)
                p.sub_(group["lr"] * state["m"] / (1 - 0.9**t) / ((state["v"] / (1 - 0.999**t)).sqrt() + 1e-8))


class Editing(torch.optim.Optimizer):
    """Makes of each gradient something of its own parameter's, in place, as LARS and old decays do."""

    def __init__(self, parameters, lr=0.1):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.add_(p, alpha=0.1).mul_(p.norm() / p.grad.norm())
                p.data.sub_(p.grad, alpha=group["lr"])  # as nobody should, and old ones do


def signs_after_the_first_step(parameters):
    optimizer = torch.optim.SGD(parameters, lr=0.01, weight_decay=0.1)
    optimizer.calls = 0

    def count(optimizer, *_):
        optimizer.calls += 1
        if optimizer.calls == 1:
            biotorch.batch_manhattan(optimizer)

    optimizer.register_step_post_hook(count)
    return optimizer


OPTIMIZERS = {
    **{name: lambda p, kind=kind: build(kind, p) for name, kind in OF_TORCH.items()},
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.5, nesterov=True, weight_decay=0.1),
    "maximizing": lambda p: torch.optim.SGD(p, lr=0.01, maximize=True, weight_decay=0.1),
    "a rate in a tensor": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01), weight_decay=0.1),
    "foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True, weight_decay=0.1),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True, weight_decay=0.1),
    "signs": lambda p: biotorch.batch_manhattan(torch.optim.SGD(p, lr=0.01, weight_decay=0.1)),
    "signs from the second step on": signs_after_the_first_step,
    "Lookahead": lambda p: Lookahead(torch.optim.SGD(p, lr=0.1, weight_decay=0.1)),
    "counting in the group": Counting,
    "editing gradients": Editing,
}


@without_decay
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_w_and_b_are_two_parameters_with_one_gradient(name):
    """To the bit as a reference of two plain parameters: whatever the optimizer does, nothing of W gets into B."""
    model = kp()
    plain = [nn.Parameter(each.detach().clone()) for each in pair(model)]
    optimizer, other = OPTIMIZERS[name](pair(model)), OPTIMIZERS[name](plain)
    for step in range(5):
        optimizer.zero_grad(set_to_none=step % 2 == 0)
        backward(model, step)
        for own, parameter in zip(plain, pair(model), strict=True):
            own.grad = model[2].weight.grad.clone()
            assert torch.equal(parameter.grad, own.grad)
        optimizer.step()
        other.step()
        for own, parameter in zip(plain, pair(model), strict=True):
            assert torch.equal(parameter, own)
    assert not torch.equal(*pair(model))


def difference(model) -> torch.Tensor:
    return (model[2].weight - model[2].feedback).detach()


def test_under_adamw_w_and_b_come_together_by_the_decay_alone():
    model = kp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.5)
    for step in range(4):
        before = difference(model)
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()
        torch.testing.assert_close(difference(model), (1 - 0.02 * 0.5) * before, **EXACT)


def by_masters(model):
    """Mixed precision with fp32 masters, as apex, DeepSpeed and Megatron keep them."""
    masters = [parameter.detach().clone().requires_grad_() for parameter in model.parameters()]
    optimizer = torch.optim.SGD(masters, lr=0.1, weight_decay=0.2)

    def step():
        for master, parameter in zip(masters, model.parameters(), strict=True):
            master.grad = parameter.grad.clone()
        optimizer.step()
        with torch.no_grad():
            for master, parameter in zip(masters, model.parameters(), strict=True):
                parameter.copy_(master)

    return step


def by_hand(model):
    def step():
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(0.1 * (parameter.grad + 0.2 * parameter))

    return step


def by_two_optimizers(model):
    feedback = list(biotorch.feedback_parameters(model))
    weights = [each for each in model.parameters() if not any(each is other for other in feedback)]
    optimizers = [torch.optim.SGD(each, lr=0.1, weight_decay=0.2) for each in (weights, feedback)]
    return lambda: [each.step() for each in optimizers]


@pytest.mark.parametrize("way", [by_masters, by_hand, by_two_optimizers])
@pytest.mark.parametrize("rule", ["kp", "dkp"])
def test_whoever_makes_the_updates_makes_those_of_b(way, rule):
    model, plain = (biotorch.convert(mlp().double(), rule, seed=1) for _ in range(2))
    plain.load_state_dict(model.state_dict())
    step, optimizer = way(model), torch.optim.SGD(plain.parameters(), lr=0.1, weight_decay=0.2)
    for number in range(5):
        for each in (model, plain):
            each.zero_grad()
            backward(each, number)
        step()
        optimizer.step()
    assert_close(model.state_dict(), plain.state_dict(), **EXACT)


def test_constrained_weights_and_b_keep_their_relation():
    """B is rescaled as W is: without it B grew to a hundred times W."""
    model = kp(constrain_weights=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.01)
    for step in range(400):
        optimizer.zero_grad()
        backward(model, step % 3)
        optimizer.step()
    assert all(0.8 < ratio < 1.25 for ratio in biotorch.metrics.norm_ratios(model).values())
    assert max(biotorch.metrics.alignment_angles(model).values()) < 20


@pytest.mark.parametrize("rule", ["kp", "dkp"])
def test_an_optimizer_that_evaluates_the_loss_itself_takes_b_along(rule):
    model = biotorch.convert(mlp().double(), rule, seed=1)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    before = model[2].feedback.detach().clone()

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch().double()), labels())
        loss.backward()
        return loss

    optimizer.step(closure)
    assert not torch.equal(model[2].feedback, before)
