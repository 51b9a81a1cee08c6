"""Sparse and nested inputs of the layers that are one product, against the same numbers in a dense tensor."""

from __future__ import annotations

import pytest
import torch
from networks import TRAINING
from torch import Tensor, nn

import biotorch

pytestmark = pytest.mark.usefixtures("targets")


def network(rule: str) -> nn.Sequential:
    """6 -> 5 -> 3 in float64."""
    torch.manual_seed(0)
    return biotorch.convert(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double(), rule, seed=1)


def sparse_matrix() -> Tensor:
    """(4, 6), with an empty row."""
    x = torch.randn(4, 6, dtype=torch.float64) * (torch.rand(4, 6) < 0.4)
    x[2] = 0
    return x


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Gradients of the parameters, and of `x` if it requires one, as dense tensors."""
    model.zero_grad()
    model(x).square().sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return found if x.grad is None else {**found, "x": x.grad.to_dense()}


@pytest.mark.filterwarnings("ignore:Sparse (CSR|CSC|invariant):UserWarning")
@pytest.mark.parametrize("needs_gradient", [False, True])
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc])
@pytest.mark.parametrize("rule", TRAINING)
def test_a_sparse_input_gives_the_gradients_of_its_dense_copy(rule, layout, needs_gradient):
    dense = sparse_matrix()
    sparse = dense.to_sparse(layout=layout)
    model = network(rule)
    expected = gradients(model, dense.requires_grad_(needs_gradient))
    found = gradients(model, sparse.requires_grad_(needs_gradient))
    assert expected["0.weight"].any()
    torch.testing.assert_close(found, expected)


def test_backpropagation_of_a_sparse_input_is_torch_s():
    model, x = network("backpropagation"), sparse_matrix().to_sparse()
    found, plain = gradients(model, x), gradients(biotorch.revert(model), x)
    torch.testing.assert_close(found, plain)


def test_a_sparse_vector_is_an_example():
    x = sparse_matrix()[0]
    expected, found = gradients(network("fa"), x), gradients(network("fa"), x.to_sparse())
    torch.testing.assert_close(found, expected)


# Nested ------------------------------------------------------------------------------------------

LENGTHS = (3, 1, 4)
LAYERWISE = [name for name in TRAINING if not biotorch.rules.get(name).direct]


def jagged(*shape: int) -> Tensor:
    rows = [torch.randn(length, *shape, dtype=torch.float64) for length in LENGTHS]
    return torch.nested.nested_tensor(rows, layout=torch.jagged, requires_grad=True)


@pytest.mark.parametrize("shape", [(6,), (2, 6)])
@pytest.mark.parametrize("rule", LAYERWISE)
def test_a_jagged_input_gives_the_gradients_of_its_rows(rule, shape):
    model, x = network(rule), jagged(*shape)
    y = model(x)
    assert y.is_nested
    assert [len(part) for part in y.unbind()] == list(LENGTHS)
    y.values().square().sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    expected = gradients(model, x.values().detach().requires_grad_())
    torch.testing.assert_close({**found, "x": x.grad.values()}, expected)


def test_a_jagged_output_adds_to_its_input():
    layer, x = biotorch.convert(nn.Linear(6, 6).double(), "fa"), jagged(6)
    (layer(x) + x).values().sum().backward()
    torch.testing.assert_close(x.grad.values(), layer.feedback.sum(0).expand(8, 6) + 1)


@pytest.mark.parametrize(
    ("rule", "layer", "make", "told"),
    [
        ("dfa", nn.Linear(6, 3), lambda: jagged(6), r"pre\.0: a direct rule brings each example its own error.*pad"),
        ("fa", nn.Linear(6, 3), lambda: jagged(2, 6).transpose(1, 2), r"pre\.0 takes nested tensors .* without gaps"),
        (
            "fa",
            nn.Linear(6, 3),
            lambda: torch.nested.nested_tensor([torch.randn(2, 6)]),
            r"pre\.0 takes .*torch\.jagged",
        ),
        ("fa", nn.Conv1d(6, 3, 1), lambda: jagged(6), r"pre\.0: a Conv1d under a rule takes no nested tensors: pad"),
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_other_nested_inputs_are_refused_by_name(rule, layer, make, told):
    model = nn.ModuleDict({"pre": nn.Sequential(layer.double()), "head": nn.Linear(3, 2)})
    biotorch.convert(model, rule)
    with pytest.raises(TypeError, match=told):
        model["pre"](make())


def test_an_output_layer_of_another_rule_refuses_nested_inputs_too():
    model = biotorch.convert(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3)).double(), {"0": "dfa", "1": "fa"})
    with pytest.raises(TypeError, match="1: a direct rule brings"):
        model[1](jagged(6))
