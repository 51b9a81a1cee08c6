"""Every rule learns by a user's plain loop, and no rule but backpropagation is backpropagation: two-sided bounds."""

import functools

import pytest
import torch
from rule_names import BY_ERROR, RULES, without_decay
from torch import nn
from torch.nn import functional as F

import biotorch
from biotorch import data
from biotorch.training import TrainingConfig, evaluate, fit

pytestmark = pytest.mark.usefixtures("targets")


@functools.cache
def task(image: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """600 noisy copies of 20 prototypes of 8x8 pixels, two prototypes a class: a trained head alone gets part of it."""
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.randn(20, 64, generator=generator)
    which = torch.randint(20, (600,), generator=generator)
    x = prototypes[which] + 0.9 * torch.randn(600, 64, generator=generator)
    return (x.view(-1, 1, 8, 8) if image else x), which % 10


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 10))


def conv_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def trained(network, rule, steps: int = 150, lr: float = 0.05, hidden: bool = True):
    """The model, its final loss and accuracy on the training set, after `steps` of SGD with momentum."""
    torch.manual_seed(1)
    model = network()
    biotorch.convert(model, rule, copy_weights=False, seed=1)
    x, y = task(network is conv_net)
    parameters = model.parameters() if hidden else model[-1].parameters()
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9)
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        chosen = torch.randint(len(x), (100,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
    with torch.no_grad():
        logits = model.eval()(x)
    return model, F.cross_entropy(logits, y).item(), (logits.argmax(1) == y).float().mean().item()


SETTINGS = {mlp: {"steps": 100, "lr": 0.01}, conv_net: {"steps": 200, "lr": 0.003}}
#: Losses far below what the head alone reaches (1.33; 2.21); each rule's was at most 0.19; 1.83 when measured.
AT_MOST = {mlp: 0.5, conv_net: 2.0}
both_networks = pytest.mark.parametrize("network", [mlp, conv_net])
every_rule = pytest.mark.parametrize("rule", RULES)


@functools.cache
def outcome(network, rule):
    return trained(network, rule, **SETTINGS[network])


@functools.cache
def head_alone(network):
    """It learns the same under every rule, since all start from the same W."""
    return trained(network, "backpropagation", hidden=False, **SETTINGS[network])


@without_decay
@both_networks
@pytest.mark.parametrize("rule", BY_ERROR)
def test_every_rule_learns_more_than_the_head_alone_could(network, rule):
    _, loss, accuracy = outcome(network, rule)
    _, head_loss, head_accuracy = head_alone(network)
    assert loss < AT_MOST[network] < head_loss
    assert accuracy > head_accuracy + 0.15


@without_decay
@pytest.mark.slow
@both_networks
@pytest.mark.parametrize("rule", BY_ERROR)
def test_the_head_alone_learns_the_same_under_every_rule(network, rule):
    assert trained(network, rule, hidden=False, **SETTINGS[network])[1:] == head_alone(network)[1:]


@both_networks
def test_backpropagation_is_plain_pytorch(network):
    torch.manual_seed(1)
    model, x, y = network(), *task(network is conv_net)
    converted = biotorch.convert(network(), "backpropagation")
    converted.load_state_dict(model.state_dict())
    for each in (model, converted):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.01, momentum=0.9)
        for chosen in torch.arange(600).split(100):
            optimizer.zero_grad()
            F.cross_entropy(each(x[chosen]), y[chosen]).backward()
            optimizer.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(converted.state_dict()[name], value, rtol=1e-4, atol=1e-5)


@both_networks
@pytest.mark.parametrize(
    "rule",
    [
        rule
        for rule in [rule for rule in RULES if rule != "backpropagation"]
        if rule not in ("backpropagation", "bp", "sa", "sham")
    ],
)
def test_no_other_rule_arrives_where_backpropagation_does(network, rule):
    start = trained(network, rule, steps=0)[0][0].weight.detach()
    ruled, true = (outcome(network, name)[0][0].weight.detach() - start for name in (rule, "backpropagation"))
    cosine = F.cosine_similarity(ruled.flatten(), true.flatten(), dim=0)
    assert cosine < 0.99
    assert (ruled - true).norm() > 0.1 * true.norm()


def test_feedback_alignment_aligns_the_last_layer_and_stays_behind_backpropagation():
    model, loss, _ = outcome(mlp, "fa")
    true_loss = outcome(mlp, "backpropagation")[1]
    assert 2 * true_loss < loss < AT_MOST[mlp]
    last = model[-1]
    angle = torch.rad2deg(torch.acos(F.cosine_similarity(last.weight.flatten(), last.feedback.flatten(), dim=0)))
    assert 50 < angle < 82  # 90 at the start, within 3 (500 entries)


@pytest.mark.parametrize("rule", ["fa", "dfa"])
def test_the_hidden_layers_themselves_move(rule):
    start, moved = trained(mlp, rule, steps=0)[0], outcome(mlp, rule)[0]
    for index in (0, 2):
        before, after = start[index].weight.detach(), moved[index].weight.detach()
        assert (after - before).norm() > 0.1 * before.norm()


@without_decay
@every_rule
def test_a_rule_is_repeatable_to_the_bit(rule):
    first, second = (trained(mlp, rule, steps=20)[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("rule", "lowest", "highest"), [("backpropagation", 0.0, 6.0), ("fa", 4.0, 25.0)])
def test_feedback_alignment_learns_real_digits_and_is_not_backpropagation(rule, lowest, highest):
    # Chance is 90 %. Measured over seeds 0 to 2 at 15 epochs: backpropagation 1.4 - 3.3 %, FA 7.5 - 17.2 %.
    digits = data.load(data.DataConfig(dataset="digits", target_size=32), seed=1)
    model = biotorch.convert(biotorch.models.build("le_net_mnist"), rule, copy_weights=False, seed=1)
    config = TrainingConfig.model_validate(
        {"hyperparameters": {"epochs": 12, "batch_size": 32}, "optimizer": {"type": "Adam", "lr": 0.001}}
    )
    fit(model, digits, config, F.cross_entropy, seed=1)
    error = evaluate(model, digits.test, F.cross_entropy)["error"]
    assert lowest <= error <= highest
