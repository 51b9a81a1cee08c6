"""What each kind of module is to a rule: under it, left with a reason, or local; and that `audit` agrees."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import biotorch

KINDS = {
    "embedding": (lambda: nn.Embedding(5, 4), "local", "lookup, local"),
    "bag": (lambda: nn.EmbeddingBag(5, 4), "local", "lookup, local"),
    "layer norm": (lambda: nn.LayerNorm((3, 4)), "local", "normalisation, local"),
    "group norm": (lambda: nn.GroupNorm(2, 4), "local", "normalisation, local"),
    "rms norm": (lambda: nn.RMSNorm(4), "local", "normalisation, local"),
    "batch norm": (lambda: nn.BatchNorm2d(4), "local", "normalisation, local"),
    "prelu": (lambda: nn.PReLU(4), "local", "holds vectors only"),
    "lstm": (lambda: nn.LSTM(4, 4), "convertible", "plain PyTorch"),
    "projected lstm": (lambda: nn.LSTM(4, 4, proj_size=2), "left", "proj_size"),
    "attention": (lambda: nn.MultiheadAttention(4, 2), "convertible", "plain PyTorch"),
    "cell": (lambda: nn.LSTMCell(4, 4), "convertible", "plain PyTorch"),
    "bilinear": (lambda: nn.Bilinear(4, 4, 4), "convertible", "plain PyTorch"),
    "complex": (
        lambda: nn.Conv1d(4, 4, 1, dtype=torch.complex64),
        "left",
        r"its weights are complex (torch.complex64)",
    ),
    "complex attention": (
        lambda: nn.MultiheadAttention(4, 2, dtype=torch.complex64),
        "left",
        "its weights are complex",
    ),
    "attention subclass": (lambda: Attention(4, 2), "left", "a subclass of MultiheadAttention"),
}


class Attention(nn.MultiheadAttention):
    pass


class Positions(nn.Module):
    """Adds a learned table to (N, positions, features), as vision transformers do."""

    def __init__(self, name: str, *size: int) -> None:
        super().__init__()
        self.name = name
        self.register_parameter(name, nn.Parameter(torch.randn(size)))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.get_parameter(self.name)


class Mixing(nn.Module):
    """Mixes positions by a matrix that has the shape of a table of positions."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, n, n))

    def forward(self, x: Tensor) -> Tensor:
        return self.table @ x


def row(model: nn.Module, name: str) -> biotorch.conversion.summary.Row:
    return next(each for each in biotorch.summary(model).rows if each.name == name)


@pytest.mark.parametrize("kind", KINDS)
def test_the_summary_tells_what_a_module_is_and_why(kind):
    build, expected, note = KINDS[kind]
    found = row(nn.ModuleDict({"it": build(), "fc": nn.Linear(4, 3)}), "it")
    assert found.kind == expected
    assert note in found.note
    assert found.rule == (None if expected == "local" else "backpropagation")


@pytest.mark.parametrize(
    ("name", "size"), [("table", (1, 4, 5)), ("pos_embed", (4, 5)), ("relative_position_bias_table", (9, 2))]
)
def test_a_table_of_positions_is_local_as_name_or_shape_tells(name, size):
    model = nn.Sequential(Positions(name, *size), nn.Linear(5, 3))
    found = row(model, "0")
    assert (found.kind, found.rule) == ("local", None)
    assert "added to activations" in found.note
    assert name in found.note
    biotorch.convert(model, "fa", strict=True)  # no reason to warn
    assert row(model, "0").kind == "local"


def test_the_audit_agrees_where_the_table_is_added_and_lists_it_where_it_transports():
    x = torch.randn(2, 4, 4)
    added = nn.Sequential(nn.Linear(4, 4), Positions("table", 1, 4, 4), nn.Linear(4, 3))
    mixed = nn.Sequential(nn.Linear(4, 4), Mixing(4), nn.Linear(4, 3))
    for model in (added, mixed):
        biotorch.convert(model, "fa", strict=True)
        assert row(model, "1").kind == "local"  # the shape is the same
    assert biotorch.audit(added, x).layers == {"0": "nothing", "2": "nothing"}
    found = biotorch.audit(mixed, x)
    assert found.layers == {"0": "nothing", "1": "weights", "2": "nothing"}
    assert found.leak > 0


def test_a_matrix_of_a_composite_module_is_left_with_the_advice_to_audit_it():
    class Projecting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix, self.norm = nn.Parameter(torch.randn(4, 4)), nn.LayerNorm(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x @ self.matrix)

    model = nn.Sequential(nn.Linear(4, 4), Projecting(), nn.Linear(4, 3))
    with pytest.warns(biotorch.ConversionWarning, match=r"1 \(Projecting\).*biotorch.audit"):
        biotorch.convert(model, "fa")
    assert biotorch.audit(model, torch.randn(2, 4)).layers == {"0": "nothing", "1": "weights", "2": "nothing"}


@pytest.mark.parametrize("options", [{}, {"add_bias_kv": True}])
@pytest.mark.filterwarnings("ignore::biotorch.ConversionWarning")
def test_the_rows_of_a_network_with_attention_hold_every_parameter_once(options):
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2, **options), "fc": nn.Linear(4, 3)})
    biotorch.convert(model, "fa")
    rows = biotorch.summary(model).rows
    assert sum(each.parameters for each in rows) == sum(p.numel() for p in model.parameters())


def test_a_complex_layer_is_left_with_the_reason():
    build = lambda: nn.ModuleDict({"wave": nn.Linear(3, 4, dtype=torch.complex64), "fc": nn.Linear(4, 2)})  # noqa: E731
    why = r"wave \(Linear\): its weights are complex \(torch\.complex64\)"
    with pytest.warns(biotorch.ConversionWarning, match=why):
        model = biotorch.convert(build(), "fa")
    model["fc"](model["wave"](torch.randn(5, 3, dtype=torch.complex64)).abs()).sum().backward()
    assert model["wave"].weight.grad.any()
    with pytest.raises(biotorch.ConversionError, match=why):
        biotorch.convert(build(), "fa", strict=True)
    with pytest.raises(biotorch.ConversionError, match=why):  # nothing else to convert
        biotorch.convert(nn.ModuleDict({"wave": build()["wave"]}), "fa")
    with pytest.raises(ValueError, match="its weights are complex"):
        biotorch.layers.Linear(3, 4, dtype=torch.complex64)
