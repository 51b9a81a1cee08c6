"""Networks that were converted apart, and losses with several terms: each layer hears its own network's outputs."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from rule_names import PLAIN_DIRECT
from torch import Tensor, nn
from torch.nn import functional as F

import biotorch
from biotorch import ConversionWarning


def mlp(n_in: int, n_out: int, rule: str = "dfa", **options) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(n_in, 8), nn.Tanh(), nn.Linear(8, n_out)).double()
    return biotorch.convert(model, rule, **options)


def z(n: int = 9) -> Tensor:
    return torch.randn(n, 4, dtype=torch.float64)


def assert_hears(model: nn.Sequential, x: Tensor, e: Tensor) -> None:
    """The first layer's gradient is that of the error `e` at the model's own output."""
    delta = (e @ model[2].feedback) * (1 - model[0](x).tanh() ** 2)
    torch.testing.assert_close(model[0].weight.grad, delta.T @ x)


@pytest.mark.parametrize("rule", PLAIN_DIRECT)
@pytest.mark.parametrize("n_out", [1, 2, 5])
def test_the_first_of_two_networks_in_a_chain_hears_the_error_at_its_own_output(rule, n_out):
    """A generator and its critic; with more outputs behind than in front, too."""
    generator, critic, x = mlp(4, 2, rule), mlp(2, n_out, rule), z()
    fake = generator(x)
    fake.retain_grad()
    score = critic(fake)
    score.retain_grad()
    F.softplus(-score).mean().backward()
    torch.testing.assert_close(fake.grad, score.grad @ critic[0].feedback)
    assert_hears(generator, x, fake.grad)
    assert_hears(critic, fake.detach(), score.grad)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_a_network_is_a_network_of_its_own(copied):
    first, x = mlp(4, 4), z()
    second, third = copied(first), copied(copied(first))
    for a, b in ((first, second), (second, first), (second, third)):
        a.zero_grad()
        y = a(x)
        y.retain_grad()
        b(y).square().sum().backward()
        assert_hears(a, x, y.grad)


def test_a_copy_of_a_part_stays_in_the_network():
    model, x = mlp(4, 3), z()
    model[0] = copy.deepcopy(model[0])
    y = model(x)
    y.retain_grad()
    y.square().sum().backward()
    assert_hears(model, x, y.grad)


def test_a_network_converted_in_one_call_hears_its_last_output_alone():
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2), nn.Linear(2, 3)).double()
    biotorch.convert(model[:3], "dfa")
    biotorch.convert(model, "dfa")
    x = z()
    y = model(x)
    y.retain_grad()
    y.square().sum().backward()
    delta = (y.grad @ model[2].feedback) * (1 - model[0](x).tanh() ** 2)
    torch.testing.assert_close(model[0].weight.grad, delta.T @ x)


def test_a_part_converted_anew_is_no_longer_heard_and_the_error_says_so():
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    biotorch.convert(model, "dfa")
    biotorch.convert(model[4], "dfa")
    with pytest.raises(RuntimeError, match=r"^2: .*converted or copied without the other layers \(convert the whole"):
        model(z()).sum().backward()


# A second term of the loss -----------------------------------------------------------------------


class Variational(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e, self.mu, self.lv = nn.Linear(8, 6), nn.Linear(6, 2), nn.Linear(6, 2)
        self.d1, self.d2 = nn.Linear(2, 6), nn.Linear(6, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = torch.tanh(self.e(x))
        mu, lv = self.mu(h), self.lv(h)
        return self.d2(torch.tanh(self.d1(mu + (lv / 2).exp()))), mu, lv


def divergence(mu: Tensor, lv: Tensor) -> Tensor:
    return -0.5 * (1 + lv - mu**2 - lv.exp()).sum(1).mean()


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_a_term_of_the_loss_that_is_dropped_is_told_once_at_the_first_backward(beta):
    """Also while its weight is still zero, as in a warm-up."""
    model, x = biotorch.convert(Variational(), "dfa"), torch.randn(5, 8)

    def backward() -> None:
        y, mu, lv = model(x)
        (F.mse_loss(y, x) + beta * divergence(mu, lv)).backward()

    with pytest.warns(
        ConversionWarning, match=r"reaches lv, mu, which learn from it but do not pass.*output=\["
    ) as told:
        backward()
    assert len(told) == 1
    backward()


def test_the_outputs_that_the_user_names_hear_their_terms():
    """The encoder's gradient is the sum of the projections of all three errors."""
    model = biotorch.convert(Variational().double(), "dfa", output=["d2", "mu", "lv"])
    x = torch.randn(5, 8, dtype=torch.float64)
    y, mu, lv = outputs = model(x)
    for each in outputs:
        each.retain_grad()
    (F.mse_loss(y, x) + divergence(mu, lv)).backward()
    e = torch.cat([y.grad, mu.grad, lv.grad], 1)
    # What reaches h is what `mu` and `lv` hand on: each the error of d2 and its own.
    to_mu = e[:, :10] @ model.mu.feedback[:10]
    to_lv = e[:, :8] @ model.lv.feedback[:8] + e[:, 10:] @ model.lv.feedback[10:]
    delta = (to_mu + to_lv) * (1 - model.e(x).tanh() ** 2)
    torch.testing.assert_close(model.e.weight.grad, delta.T @ x)


@pytest.mark.parametrize(
    "loss",
    [
        lambda model, x: model(x)[0].sum() + sum(p.square().sum() for p in model.parameters()),
        lambda model, x: model(x)[0].sum() + model(2 * x)[0].square().sum(),
        lambda model, x: model(model(x)[0])[0].sum() + x.sum(),
        lambda model, x: (model(x)[0] * model.e.weight.norm()).sum(),
    ],
    ids=["penalty on weights", "two passes", "chain", "weight in the loss"],
)
@pytest.mark.parametrize("partial", [False, True])
def test_what_a_direct_rule_does_not_drop_is_not_told(loss, partial):
    model, x = biotorch.convert(Variational(), "dfa"), torch.randn(5, 8)
    value = loss(model, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if partial:
            torch.autograd.grad(value, model.e.weight)
        else:
            value.backward()


def test_a_term_at_the_first_layer_has_nothing_in_front_that_could_miss_it():
    model, x = mlp(4, 3), z()
    h = model[0](x)
    (model[2](model[1](h)).sum() + h.square().mean()).backward()


def test_a_loss_at_another_network_s_output_is_no_dropped_term():
    encoder, head, x = mlp(4, 3), mlp(3, 2), z()
    y = encoder(x)
    (head(y).sum() + y.square().sum()).backward()
