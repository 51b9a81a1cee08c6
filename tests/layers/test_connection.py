"""Layers with several weight matrices: each has a B of its own, redrawn, saved, measured and kept apart."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import same, state
from rule_names import DIRECT, RULES, TRAINING, without_decay
from torch import Tensor, nn

import biotorch
from biotorch.layers import connections
from biotorch.metrics import alignment_angles, norm_ratios

pytestmark = pytest.mark.usefixtures("targets")

MATRICES = ["attention.in_proj_weight", "attention.out_proj.weight", "cell.weight_ih", "cell.weight_hh", "head"]
FEEDBACK = {
    "attention.in_proj_weight": "attention.in_proj_feedback",
    "attention.out_proj.weight": "attention.out_proj_feedback",
    "cell.weight_ih": "cell.feedback_ih",
    "cell.weight_hh": "cell.feedback_hh",
    "head": "head.feedback",
}


class Mixed(nn.Module):
    """Attention over (N, T, 6), a cell over its outputs, 3 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.cell, self.head = nn.GRUCell(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = None
        for step in self.attention(x, x, x, need_weights=False)[0].unbind(1):
            h = self.cell(step, h)
        return self.head(h)


def mixed(rule: str, seed: int = 1, **options) -> Mixed:
    torch.manual_seed(0)
    return biotorch.convert(Mixed(), rule, seed=seed, **options)


def batch() -> Tensor:
    return torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0))


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(batch()).square().sum().backward()
    optimizer.step()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05)


@pytest.mark.parametrize("rule", ["fa", "dfa", "brsf", "frsf", "usf"])
def test_every_matrix_has_a_b_of_its_own(rule):
    model = mixed(rule)
    found = connections(model)
    assert list(found) == MATRICES
    buffers = dict(model.named_buffers())
    for name, connection in found.items():
        assert connection.feedback is buffers[FEEDBACK[name]]
        if rule != "dfa":
            assert connection.effective_feedback.shape == connection.weight.shape
    assert len({connection.feedback.data_ptr() for connection in found.values()}) == len(MATRICES)
    if rule not in ("usf", "dfa"):  # no two are one draw
        shapes = [found[f"cell.{name}"].feedback for name in ("weight_ih", "weight_hh")]
        assert not torch.equal(shapes[0][:, :5], shapes[1])


def test_brsf_draws_every_matrix_again_once_per_step():
    model = mixed("brsf")
    optimizer, seen = sgd(model), []
    for draws in (1, 2, 3):
        before = {name: each.feedback.clone() for name, each in connections(model).items()}
        step(model, optimizer)
        assert {
            name for name, each in connections(model).items() if not torch.equal(each.feedback, before[name])
        } == set(MATRICES)
        assert {model.attention.feedback_draws, model.cell.feedback_draws, model.head.feedback_draws} == {draws}
        seen.append(before)
    assert not any(torch.equal(seen[0][name], seen[2][name]) for name in MATRICES)
    model(batch()).sum().backward()  # no draw without a step
    assert model.cell.feedback_draws == 3


def test_an_optimizer_of_one_matrix_leaves_the_other_s_b_where_that_had_no_gradient():
    model = mixed("brsf")
    model.cell.weight_hh.requires_grad_(False)
    before = {name: each.feedback.clone() for name, each in connections(model).items()}
    step(model, sgd(model))
    unchanged = {name for name, each in connections(model).items() if torch.equal(each.feedback, before[name])}
    assert unchanged == {"cell.weight_hh"}


@without_decay
@pytest.mark.parametrize("rule", TRAINING)
def test_constrain_weights_keeps_the_norm_of_each_matrix(rule):
    model = mixed(rule, constrain_weights=True)
    before = {name: each.trained.detach().clone() for name, each in connections(model).items()}
    optimizer = sgd(model)
    for _ in range(3):
        step(model, optimizer)
    for name, each in connections(model).items():
        torch.testing.assert_close(each.weight.norm(), before[name].norm(), rtol=1e-5, atol=0)
        assert not torch.allclose(each.trained, before[name], rtol=1e-4), name


@without_decay
@pytest.mark.parametrize("rule", RULES)
def test_a_resumed_network_goes_on_as_the_original(rule):
    model = mixed(rule)
    step(model, sgd(model))
    other = mixed(rule, seed=2)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    for each in (model, other):
        for _ in range(2):
            step(each, sgd(each))
    assert same(state(other), state(model))  # feedback_draws is in it
    assert ("cell.feedback_draws" in state(model)) == biotorch.rules.get(rule).has_update()


def test_a_state_without_the_draws_is_not_loaded_silently():
    saved = {name: value for name, value in mixed("brsf").state_dict().items() if "draws" not in name}
    with pytest.raises(RuntimeError, match=r"cell\.feedback_draws"):
        mixed("brsf").load_state_dict(saved)


def test_feedback_of_another_shape_is_named():
    with pytest.raises(RuntimeError, match=r"in_proj_feedback: the loaded feedback has shape \(3, 6\).*\(18, 6\)"):
        mixed("fa").load_state_dict(mixed("dfa").state_dict())


@pytest.mark.parametrize("rule", RULES)
def test_metrics_name_every_matrix(rule):
    model = mixed(rule)
    assert list(alignment_angles(model)) == ([] if rule in (*DIRECT, "shallow") else MATRICES)
    assert list(norm_ratios(model)) == ([] if rule == "shallow" else MATRICES)
    loss = lambda output, targets: (output - targets).square().sum()  # noqa: E731
    alignment = biotorch.metrics.gradient_alignment(model, loss, batch(), torch.zeros(2, 3))
    assert list(alignment) == (["head"] if rule == "shallow" else MATRICES)
    assert alignment["head"] == pytest.approx(0, abs=0.1)
    if rule == "backpropagation":
        assert max(alignment_angles(model).values()) == 0
        assert max(alignment.values()) < 0.1
    elif rule == "fa":
        assert alignment["attention.in_proj_weight"] > 1


def test_attention_with_sizes_of_its_own_has_four_matrices():
    model = biotorch.convert(nn.MultiheadAttention(6, 2, kdim=4, vdim=5), "fa")
    names = ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"]
    assert list(connections(model)) == names
    assert {"q_proj_feedback", "k_proj_feedback", "v_proj_feedback", "out_proj_feedback"} == {
        name for name, _ in model.named_buffers()
    }


def test_cells_that_share_a_matrix_share_its_b():
    first, second = nn.RNNCell(4, 4), nn.RNNCell(4, 4)
    second.weight_hh = first.weight_hh
    model = biotorch.convert(nn.ModuleDict({"a": first, "b": second}), "brsf")
    assert model["a"].feedback_hh is model["b"].feedback_hh
    assert model["a"].feedback_ih is not model["b"].feedback_ih


@pytest.mark.parametrize("rule", RULES)
def test_weights_drawn_again_are_those_of_the_seed(rule):
    first, second, other = (mixed(rule, seed=seed, copy_weights=False) for seed in (1, 1, 2))
    assert same(state(first), state(second))
    for name, connection in connections(first).items():
        assert not torch.equal(connection.weight, connections(other)[name].weight)
        fan_out, fan_in = connection.weight.shape
        bound = (6 / (fan_in + fan_out)) ** 0.5
        assert 0.5 * bound < connection.weight.abs().max() <= bound
    assert not first.attention.in_proj_bias.any()
    assert not first.cell.bias_hh.any()
