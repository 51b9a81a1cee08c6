"""Recurrent layers under a rule: against cells, against torch's own, with what a layer has beside its products."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from rule_names import PLAIN_DIRECT
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import biotorch
from biotorch.layers import connections
from biotorch.metrics import alignment_angles

KINDS = [nn.RNN, nn.LSTM, nn.GRU]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def randn(*size: int) -> Tensor:
    return torch.randn(size, dtype=torch.float64)


def tensors(result) -> list[Tensor]:
    """Output and states of a recurrent layer."""
    y, states = result
    return [y.data, *(states if isinstance(states, tuple) else (states,))]


def packed(x: Tensor, lengths=(3, 5, 1)) -> PackedSequence:
    return pack_padded_sequence(x, torch.tensor(lengths), batch_first=True, enforce_sorted=False)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


class Tagger(nn.Module):
    """A recurrent layer with an output at every step, or one after the last step."""

    def __init__(self, kind: type[nn.Module] = nn.LSTM, steps: bool = True, **options) -> None:
        super().__init__()
        self.steps = steps
        self.lower = nn.Linear(4, 4)
        self.rnn = kind(4, 3, 2, batch_first=True, bidirectional=True, **options)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.rnn(self.lower(x))
        return self.head(y if self.steps else y[:, -1])


class Cells(nn.Module):
    """The same, written by hand with the cells."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        cell = {nn.RNN: nn.RNNCell, nn.LSTM: nn.LSTMCell, nn.GRU: nn.GRUCell}[kind]
        self.lower = nn.Linear(4, 4)
        self.rnn = nn.ModuleDict(
            {f"l{depth}{end}": cell(4 if depth == 0 else 6, 3) for depth in range(2) for end in ("", "_reverse")}
        )
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.lower(x)
        for depth in range(2):
            halves = []
            for end in ("", "_reverse"):
                state, hidden = None, []
                for step in y.unbind(1)[:: -1 if end else 1]:
                    state = self.rnn[f"l{depth}{end}"](step, state)
                    hidden.append(state[0] if isinstance(state, tuple) else state)
                halves.append(torch.stack(hidden[:: -1 if end else 1], 1))
            y = torch.cat(halves, 2)
        return self.head(y[:, -1])


@each_kind
@pytest.mark.parametrize("rule", ["fa", "usf", "kp", *PLAIN_DIRECT])
def test_a_layer_is_its_cells_unrolled(kind, rule):
    layer = biotorch.convert(Tagger(kind, steps=False).double(), rule)
    cells = biotorch.convert(Cells(kind).double(), rule)
    names = {name: of_layer(name) for name in cells.state_dict()}
    cells.load_state_dict({name: layer.state_dict()[names[name]] for name in names}, strict=False)
    x, direction = randn(3, 5, 4), randn(3, 2)
    found = []
    for model in (layer, cells):
        model(x).backward(direction)
        found.append(gradients(model))
    assert found[0].keys() == {names[name] for name in found[1]}
    for name, gradient in found[1].items():
        torch.testing.assert_close(found[0][names[name]], gradient)


def of_layer(name: str) -> str:
    """`rnn.l0_reverse.weight_ih` is `rnn.weight_ih_l0_reverse` of the layer."""
    first, *inner = name.split(".")
    return ".".join((first, "_".join(reversed(inner)) if first == "rnn" else inner[0]))


@pytest.mark.parametrize("form", ["batch first", "time-major", "unbatched", "packed"])
@each_kind
def test_without_gradients_and_with_true_ones_it_is_torch_s_own_call(kind, form):
    plain = kind(4, 3, 2, bidirectional=True, batch_first=form == "batch first").double()
    converted = biotorch.convert(copy.deepcopy(plain), "fa")
    x = packed(randn(3, 5, 4)) if form == "packed" else randn(*(5, 4) if form == "unbatched" else (2, 5, 4))
    expected = tensors(plain(x))
    with torch.no_grad():
        assert all(map(torch.equal, tensors(converted(x)), expected))
    with biotorch.true_gradients(converted):
        found = tensors(converted(x))
    assert all(map(torch.equal, found, expected))
    assert type(found[0].grad_fn) is type(expected[0].grad_fn)
    for own, wanted in zip(tensors(converted(x)), expected, strict=True):  # unrolled
        torch.testing.assert_close(own, wanted)
        assert own.shape == wanted.shape
    biotorch.revert(converted)
    assert type(converted) is kind
    assert converted.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize(("rule", "feedback"), [*((rule, "kernel") for rule in PLAIN_DIRECT), ("dfa", "shared")])
def test_rows_of_packed_sequences_hear_their_own_errors(rule, feedback):
    """An output on the packed rows learns as one on the same sequences padded again, at the steps that there are."""

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.GRU(4, 3, batch_first=True), nn.Linear(3, 2)

        def forward(self, x: PackedSequence, pad: bool) -> Tensor:
            y, _ = self.rnn(x)
            if not pad:
                return self.head(y.data)
            return pack_padded_sequence(
                self.head(pad_packed_sequence(y, batch_first=True)[0]), torch.tensor([3, 5, 1]), True, False
            ).data

    model = biotorch.convert(Packed().double(), rule, feedback=feedback)
    x, direction, found = randn(3, 5, 4).requires_grad_(), randn(9, 2), []
    for pad in (False, True):
        x.grad = None
        model.zero_grad()
        model(packed(x), pad).backward(direction)
        found.append({**gradients(model), "x": x.grad})
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name])
    own = packed(x.grad).data
    torch.testing.assert_close(own, direction @ connections(model)["rnn.weight_ih_l0"].feedback)
    with pytest.raises(RuntimeError, match=r"rnn: all 3 packed sequences have length 5.*pad"):
        model(packed(x, (5, 5, 5)), False).sum().backward()


def test_everything_is_dropped_between_layers_in_training_alone():
    plain = nn.LSTM(4, 3, 2, dropout=1.0)
    converted, x = biotorch.convert(copy.deepcopy(plain), "fa"), torch.randn(5, 2, 4)
    for mode in (True, False):
        torch.testing.assert_close(tensors(converted.train(mode)(x)), tensors(plain.train(mode)(x)))
    converted.train()(x)[0].sum().backward()
    assert not converted.weight_ih_l0.grad.any()
    assert converted.weight_hh_l1.grad.any()


@each_kind
def test_the_audit_finds_what_the_rule_transports(kind):
    x = torch.randn(2, 3, 4)
    for rule, transports in {"fa": "nothing", "dfa": "nothing", "usf": "signs", "backpropagation": "weights"}.items():
        found = biotorch.audit(biotorch.convert(Tagger(kind), rule, strict=True), x)
        assert set(found.layers.values()) == {transports}, rule


@pytest.mark.parametrize("rule", ["kp", "wm", "sa"])
def test_each_matrix_has_a_b_that_learns(rule):
    torch.manual_seed(0)
    model = biotorch.convert(Tagger(), rule, seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    before, own = alignment_angles(model), connections(model)
    assert sum(name.startswith("rnn.weight_") for name in before) == 8
    apart = {name: (each.weight - each.feedback).norm().item() for name, each in own.items()}
    x = torch.randn(32, 5, 4)
    for _ in range(60):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    if rule == "kp":  # W and B get the same gradient, and the decay of both shrinks what is between them
        for name, each in own.items():
            assert (each.weight - each.feedback).norm().item() == pytest.approx(0.99**60 * apart[name], rel=1e-3)
    else:
        after = alignment_angles(model)
        assert all(after[name] < before[name] for name in before), (before, after)


def test_copies_pickles_and_checkpoints_go_on_alike():
    model, x = biotorch.convert(Tagger(), "kp", seed=1), torch.randn(2, 3, 4)
    model(x)
    again = biotorch.convert(Tagger(), "kp", seed=2)
    again.load_state_dict(model.state_dict())
    found = []
    for each in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model)), again):
        each(x).sum().backward()
        each.rnn.flatten_parameters()
        torch.optim.SGD(each.parameters(), lr=0.1).step()
        with torch.no_grad():
            found.append([each(x), *each.parameters()])
    for other in found[1:]:
        assert all(map(torch.equal, other, found[0]))


def test_a_frozen_matrix_is_left_alone():
    model = biotorch.convert(Tagger(), "kp")
    model.rnn.weight_hh_l0.requires_grad_(False)
    model(torch.randn(2, 3, 4)).sum().backward()
    without = {name for name, gradient in gradients(model).items() if gradient is None}
    assert without == {"rnn.weight_hh_l0", "rnn.feedback_hh_l0"}


@each_kind
def test_autocast_changes_the_precision_alone(kind):
    model, x, found = biotorch.convert(Tagger(kind), "fa"), torch.randn(2, 5, 4), []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = model(x)
        y.float().square().sum().backward()
        found.append([y.float(), *gradients(model).values()])
    assert not torch.equal(found[0][0], found[1][0])
    for exact, rough in zip(*found, strict=True):
        torch.testing.assert_close(rough, exact, rtol=0.05, atol=0.03 * exact.abs().max().item())


def test_wrong_inputs_are_refused():
    layer = biotorch.convert(nn.ModuleDict({"rnn": nn.LSTM(4, 3)}), "fa")["rnn"]
    with pytest.raises(ValueError, match=r"rnn takes an input \(T, N, features\)"):
        layer(torch.randn(2, 2, 2, 4))
    with pytest.raises(RuntimeError, match="rnn takes sequences of at least one step"):
        layer(torch.randn(0, 2, 4))
    with pytest.raises(RuntimeError, match=r"Expected hidden\[1\] size \(1, 2, 3\)"):
        layer(torch.randn(5, 2, 4), (torch.randn(1, 2, 3), torch.randn(1, 1, 3)))
    with pytest.raises(TypeError, match="rnn takes a floating point input"):
        layer(torch.ones(5, 2, 4, dtype=torch.int64))
