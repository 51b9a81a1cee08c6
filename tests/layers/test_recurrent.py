"""Recurrent cells and the bilinear layer under a rule, against torch's own."""

from __future__ import annotations

import copy

import pytest
import torch
from rule_names import PLAIN_DIRECT
from torch import Tensor, nn

import biotorch

CELLS = {
    "rnn": lambda **k: nn.RNNCell(4, 3, dtype=torch.float64, **k),
    "relu rnn": lambda **k: nn.RNNCell(4, 3, nonlinearity="relu", dtype=torch.float64, **k),
    "lstm": lambda **k: nn.LSTMCell(4, 3, dtype=torch.float64, **k),
    "gru": lambda **k: nn.GRUCell(4, 3, dtype=torch.float64, **k),
}


def randn(*size: int) -> Tensor:
    return torch.randn(size, dtype=torch.float64)


def states_for(name: str, *leading: int):
    return (randn(*leading, 3), randn(*leading, 3)) if name == "lstm" else randn(*leading, 3)


def tensors(state) -> list[Tensor]:
    return list(state) if isinstance(state, tuple) else [state]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("given", [True, False], ids=["from a state", "from zero"])
@pytest.mark.parametrize("leading", [(2,), ()], ids=["batched", "unbatched"])
@pytest.mark.parametrize("name", CELLS)
def test_backpropagation_is_autograd(name, leading, given, bias):
    plain = CELLS[name](bias=bias)
    converted = biotorch.convert(copy.deepcopy(plain), "backpropagation")
    x, state, found = randn(*leading, 4), states_for(name, *leading) if given else None, []
    directions = randn(*leading, 3), randn(*leading, 3)
    for cell in (plain, converted):
        inputs = [x, *(tensors(state) if given else [])]
        for each in inputs:
            each.grad = None
            each.requires_grad_()
        outputs = tensors(cell(x, state))
        sum((y * d).sum() for y, d in zip(outputs, directions, strict=False)).backward()
        found.append([y.detach() for y in outputs] + [each.grad for each in (*inputs, *cell.parameters())])
    for own, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(own, expected)


@pytest.mark.parametrize("name", CELLS)
def test_without_gradients_outputs_are_torch_s_to_the_bit(name):
    plain = CELLS[name]()
    converted, x = biotorch.convert(copy.deepcopy(plain), "fa"), randn(2, 4)
    with torch.no_grad():
        for own, expected in zip(tensors(converted(x)), tensors(plain(x)), strict=True):
            assert torch.equal(own, expected)


@pytest.mark.parametrize("rule", PLAIN_DIRECT)
def test_a_cell_hears_the_errors_of_the_outputs_that_follow_in_time(rule):
    """An output at every step: the state before step t hears the errors of t and later, each projected."""

    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.RNNCell(4, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor, h: Tensor) -> list[Tensor]:
            outputs = []
            for step in x.unbind(1):
                h = self.cell(step, h)
                outputs.append(self.head(h))
            return outputs

    model = biotorch.convert(Steps().double(), rule, seed=1)
    x, h, errors = randn(2, 3, 4).requires_grad_(), randn(2, 3).requires_grad_(), randn(3, 2, 2)
    outputs = model(x, h)
    sum((y * e).sum() for y, e in zip(outputs, errors, strict=True)).backward()
    for t in range(3):
        torch.testing.assert_close(x.grad[:, t], errors[t:].sum(0) @ model.cell.feedback_ih)
    torch.testing.assert_close(h.grad, errors.sum(0) @ model.cell.feedback_hh)


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
def test_a_recurrent_network_of_cells_transports_nothing(kind):
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = CELLS[kind]().float(), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            state = None
            for step in x.unbind(1):
                state = self.cell(step, state)
            return self.head(tensors(state)[0])

    x = torch.randn(2, 3, 4)
    assert biotorch.audit(biotorch.convert(Last(), "fa", strict=True), x).layers["cell"] == "nothing"
    assert biotorch.audit(biotorch.convert(Last(), "usf"), x).layers["cell"] == "signs"
    assert biotorch.audit(biotorch.convert(Last(), "backpropagation"), x).layers["cell"] == "weights"


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.MultiheadAttention])
def test_what_is_no_affine_map_cannot_be_the_output_layer(kind):
    model = nn.Sequential(nn.Linear(4, 4), kind(4, 2))
    with pytest.raises(biotorch.ConversionError, match=r"1 \(.*\) cannot be the output layer"):
        biotorch.convert(model, "dfa", output="1")
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
def test_a_bilinear_layer_under_backpropagation_is_autograd(leading):
    plain = nn.Bilinear(4, 3, 5, dtype=torch.float64)
    converted, found = biotorch.convert(copy.deepcopy(plain), "backpropagation"), []
    x, y, direction = randn(*leading, 4), randn(*leading, 3), randn(*leading, 5)
    for layer in (plain, converted):
        inputs = [each.clone().requires_grad_() for each in (x, y)]
        z = layer(*inputs)
        (z * direction).sum().backward()
        found.append([z.detach(), *(each.grad for each in (*inputs, *layer.parameters()))])
    for own, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(own, expected)


@pytest.mark.parametrize("names", [("input2",), ("input1", "input2")])
def test_a_bilinear_layer_takes_its_inputs_by_torch_s_names(names):
    layer = biotorch.convert(nn.Bilinear(4, 3, 5), "fa")
    x, y = torch.randn(2, 4), torch.randn(2, 3)
    given = {"input1": x, "input2": y}
    args = [given[name] for name in ("input1", "input2") if name not in names]
    torch.testing.assert_close(layer(*args, **{name: given[name] for name in names}), layer(x, y))


@pytest.mark.parametrize("name", CELLS)
def test_an_integer_input_is_an_error(name):
    with pytest.raises(TypeError, match="floating point"):
        biotorch.convert(CELLS[name](), "fa")(torch.ones(2, 4, dtype=torch.int64))
