"""The two controls: `sham`, which has the weights of backpropagation, and `shallow`, which trains the head alone."""

import copy

import pytest
import torch
from torch import nn

import biotorch
from biotorch.testing import Net, assert_close, images, loss_of, net


def train(model, steps: int, **optimizer) -> None:
    trained = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, **optimizer)
    for seed in range(steps):
        trained.zero_grad()
        (loss_of(model(images(seed=seed))) / 50).backward()
        trained.step()


def test_sham_gives_the_weights_of_backpropagation_and_is_found_out():
    sham, plain = net("sham"), net("backpropagation")
    train(sham, 100, weight_decay=0.01)
    train(plain, 100, weight_decay=0.01)
    assert_close(dict(sham.named_parameters()), dict(plain.named_parameters()), rtol=1e-4, atol=1e-5)
    found = biotorch.audit(sham, images())
    assert set(found.layers.values()) == {"weights"}
    assert "rule sham" in found.verdict


@pytest.mark.parametrize("wrapped", [False, True])
def test_under_shallow_all_but_the_last_layer_stays_to_the_bit(wrapped):
    model = biotorch.convert(nn.Sequential(Net().features, nn.BatchNorm1d(10), nn.Linear(10, 3)), "shallow")
    before = copy.deepcopy(dict(model.named_parameters()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)  # it holds the frozen ones, too
    for seed in range(3):
        optimizer.zero_grad()
        loss_of(model(images(seed=seed))).backward()
        optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"2.weight", "2.bias"}


def test_what_shallow_froze_learns_again_under_another_rule_or_none():
    for other in ("fa", None):
        model = net("shallow")
        assert [name for name, p in model.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]
        assert "frozen" in str(biotorch.summary(model))
        model = biotorch.revert(model) if other is None else biotorch.convert(model, other)
        assert all(p.requires_grad for p in model.parameters())
        assert not any("biotorch" in name for module in model.modules() for name in vars(module))


def test_shallow_leaves_alone_what_a_user_froze_and_layers_of_other_rules():
    model = Net()
    model.features[0].bias.requires_grad_(False)
    biotorch.convert(model, {"features.2": "fa", "*": "shallow"})
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == ["features.2.weight", "features.2.bias", "head.weight", "head.bias"]
    biotorch.revert(model)
    assert not model.features[0].bias.requires_grad


def test_under_shallow_a_part_converted_again_leaves_the_head_to_learn():
    model = net("shallow")
    biotorch.convert(model, {"features.0": "fa", "*": None})
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == ["features.0.weight", "features.0.bias", "head.weight", "head.bias"]


def test_shallow_by_hand_is_refused():
    with pytest.raises(ValueError, match=r"rule 'shallow' needs a whole network: use biotorch\.convert"):
        biotorch.layers.Linear(3, 2, rule="shallow")
