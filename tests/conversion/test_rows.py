"""Which rows of a layer's input hear which example: found out by experiment, declared, or refused."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import biotorch
from biotorch.conversion import rows as rows_module
from biotorch.conversion.rows import RowSearch
from biotorch.layers import FeedbackLayer


class Rearranged(nn.Module):
    """Two layers, whatever `arrange` makes of their rows, and an output layer."""

    def __init__(self, arrange, width: int = 8) -> None:
        super().__init__()
        self.arrange, self.a, self.b, self.out = arrange, nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(width, 4)

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        return self.out(self.arrange(self.b(self.a(x).tanh()).tanh(), *more))


def joined(h: Tensor) -> Tensor:
    """Two views in one batch, as in siamese networks."""
    return torch.cat(h.chunk(2), 1)


def frames(h: Tensor) -> Tensor:
    return h.view(-1, 2, 8).mean(1)


def pooled(h: Tensor, batch: Tensor) -> Tensor:
    return h.new_zeros(int(batch.max()) + 1, 8).index_add(0, batch, h)


def attending(h: Tensor) -> Tensor:
    """Tokens of four per example, flattened with the batch, that attend to each other."""
    t = h.view(-1, 4, 8)
    return ((t @ t.transpose(1, 2)).softmax(-1) @ t + t).flatten(0, 1)


def of_graph(h: Tensor) -> Tensor:
    """Two steps in a ring of nodes, each of which has an output."""
    for _ in range(2):
        h = (h + h.roll(1, 0) + h.roll(-1, 0)).tanh()
    return h


def network(arrange, width: int = 8, rule: str = "dfa", **options) -> Rearranged:
    torch.manual_seed(0)
    return biotorch.convert(Rearranged(arrange, width).double(), rule, **options)


def rows(n: int = 8) -> Tensor:
    return torch.randn(n, 6, dtype=torch.float64)


def assert_hears(model: Rearranged, index: Tensor, x: Tensor, *more: Tensor) -> None:
    """The gradient of layer `a` is that of rows which hear the errors of the examples `index`."""
    y = model(x, *more)
    e = torch.randn_like(y)
    model.zero_grad()
    y.backward(e)
    delta = (e[index] @ model.b.feedback) * (1 - model.a(x).tanh() ** 2)
    torch.testing.assert_close(model.a.weight.grad, delta.T @ x)


@pytest.mark.parametrize(
    ("arrange", "width", "example"),
    [
        (lambda h: h, 8, lambda r, n: r),
        (joined, 16, lambda r, n: r % n),
        (frames, 8, lambda r, n: r // 2),
        (attending, 8, lambda r, n: r),
        (of_graph, 8, lambda r, n: r),
    ],
    ids=["in order", "joined views", "frames", "flattened tokens", "nodes"],
)
def test_rows_hear_their_own_example_also_in_batches_of_another_size(arrange, width, example):
    model = network(arrange, width)
    for count in (8, 4, 12):
        x = rows(count)
        n = len(model(x))
        assert_hears(model, example(torch.arange(count), n), x)


@pytest.mark.parametrize("batch", [[0, 0, 0, 1, 1, 1, 1, 1], [0, 1, 0, 1, 1, 1, 0, 0]], ids=["in order", "mixed"])
def test_graphs_whose_nodes_happen_to_be_a_multiple_are_refused_unless_declared(batch):
    batch, x = torch.tensor(batch), rows()
    model = network(pooled)
    with pytest.raises(RuntimeError, match=r"^b: .*2 example.*8 row.*order that was not recognised.*rows=") as error:
        model(x, batch).sum().backward()
    assert "\n" not in str(error.value)
    assert_hears(network(pooled, rows=lambda x, batch: batch), batch, x, batch)


def test_a_permuted_batch_is_refused_unless_declared():
    x, order = rows(), torch.randperm(8)
    with pytest.raises(RuntimeError, match=r"^b: .*8 example.*8 row.*order that was not recognised"):
        network(lambda h, order: h[order])(x, order).sum().backward()
    declared = network(lambda h, order: h[order], rows=lambda x, order: {"[ab]": order.argsort()})
    assert_hears(declared, order.argsort(), x, order)


class Closed(nn.Module):
    """A layer whose scale begins at zero, as in residual blocks. Its rows are known by the shortcut around it."""

    def __init__(self, arrange, width: int) -> None:
        super().__init__()
        self.scale, self.gate = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(1))
        self.f, self.arrange, self.out = nn.Linear(8, 8), arrange, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.scale
        return self.out(self.arrange(x + self.gate * self.f(x).tanh()))


def test_a_branch_that_is_still_closed_is_judged_by_its_shortcut():
    permuted = biotorch.convert(Closed(lambda h: h.flip(0), 8), "dfa", output="out")
    with pytest.raises(RuntimeError, match="order that was not recognised"):
        permuted(torch.randn(8, 8)).sum().backward()
    views = biotorch.convert(Closed(joined, 16), "dfa", output="out")
    views(torch.randn(8, 8)).sum().backward()
    assert views.f.network.found["f", 2, 1] == "tiled"


def test_float16_does_not_hide_the_order():
    """Errors divided by many positions and multiplied by small factors vanish in float16."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    biotorch.convert(model, "dfa")
    with torch.autocast("cpu", torch.float16):
        loss = model(torch.randn(8, 3, 64, 64)).float().square().mean()
    loss.backward()
    assert set(model[0].network.found.values()) == {"interleaved"}


def test_the_experiment_keeps_four_values_of_each_row(monkeypatch):
    """All gradients at once would take the memory of a training step."""
    kept = []
    gradients = rows_module._Trial._gradients
    monkeypatch.setattr(
        rows_module._Trial, "_gradients", lambda self, factors: kept.extend(found := gradients(self, factors)) or found
    )
    network(lambda h: h)(rows()).sum().backward()
    assert {tuple(each.shape) for each in kept} == {(8, 4)}


@pytest.mark.parametrize("pattern", ["interleaved", "tiled"])
def test_a_declared_pattern_is_believed(pattern):
    index = torch.arange(8) // 2 if pattern == "interleaved" else torch.arange(8) % 4
    assert_hears(network(frames, rows=pattern), index, rows())


def test_a_declaration_of_the_wrong_kind_is_refused():
    with pytest.raises(TypeError, match="rows is 'interleaved', 'tiled' or a function"):
        network(frames, rows="sideways")
    with pytest.raises(TypeError, match="returns an integer tensor"):
        network(frames, rows=lambda x: x)(rows())


def test_a_network_called_in_parts_pairs_equal_numbers_and_refuses_others():
    model, x = network(frames), rows()
    h = model.b(model.a(x).tanh())
    model.out(h).sum().backward()
    with pytest.raises(RuntimeError, match=r"^b: .*4 example.*8 row.*not known which belongs.*rows="):
        model.out(frames(model.b(model.a(x).tanh()))).sum().backward()


def test_a_single_example_tells_nothing_and_the_next_batch_does():
    model = network(joined, 16)
    model(rows(2)).sum().backward()
    assert_hears(model, torch.arange(8) % 4, rows())


def test_another_number_of_rows_is_looked_at_again():
    model = network(lambda h: h.view(4, -1, 8).mean(1))
    for count in (8, 12):
        assert_hears(model, torch.arange(count) // (count // 4), rows(count))


def test_layers_that_no_gradient_reaches_yet_follow_the_others():
    """A branch whose last scale starts at zero."""

    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)
            nn.init.zeros_(self.norm.weight)

        def forward(self, h: Tensor) -> Tensor:
            return h + self.norm(self.inner(h))

    class Framed(Rearranged):
        def __init__(self) -> None:
            super().__init__(frames)
            self.branch = Branch()

        def forward(self, x: Tensor) -> Tensor:
            return self.out(frames(self.branch(self.b(self.a(x).tanh()))))

    torch.manual_seed(0)
    model = biotorch.convert(Framed().double(), "dfa", output="out")
    model(rows()).sum().backward()
    with torch.no_grad():
        model.branch.norm.weight.fill_(1.0)
    h = torch.randn(8, 8, dtype=torch.float64, requires_grad=True)
    e = torch.randn(4, 4, dtype=torch.float64)
    (found,) = torch.autograd.grad(model.out(frames(model.branch(h))), h, e)
    past = (e @ model.out.feedback / 2).repeat_interleave(2, 0)
    torch.testing.assert_close(found, past + e.repeat_interleave(2, 0) @ model.branch.inner.feedback)


def test_the_experiment_leaves_no_trace():
    calls = []
    model = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
    ).double()
    model[4].register_forward_hook(lambda *_: calls.append("forward"))
    model[4].register_full_backward_hook(lambda *_: calls.append("backward"))
    twin = copy.deepcopy(model)
    found = []
    for each, declared in ((model, None), (twin, "interleaved")):  # the second needs no experiment
        biotorch.convert(each, "dfa", seed=1, rows=declared)
        torch.manual_seed(3)
        y = each(rows())
        y.square().sum().backward()
        found.append((y, *each.buffers(), *(p.grad for p in each.parameters()), torch.get_rng_state()))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert calls == ["forward", "backward"] * 2
    assert all(module.training for module in model.modules())
    assert not any("carry" in vars(module) for module in model.modules())


def test_the_experiment_is_made_once_and_goes_with_the_rule(monkeypatch):
    runs = []
    forward = Rearranged.forward
    monkeypatch.setattr(Rearranged, "forward", lambda *args: (runs.append(1), forward(*args))[1])
    model = network(lambda h: h)
    for copied in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(network(torch.tanh)))):
        runs.clear()
        with torch.no_grad():
            copied(rows())
        for _ in range(3):
            copied(rows()).sum().backward()
        assert len(runs) == 5  # one without gradients, one experiment, three steps
    with biotorch.true_gradients(model):
        model(rows())
    biotorch.convert(model, "dfa")
    assert [type(hook) for hook in model._forward_pre_hooks.values()] == [RowSearch]
    biotorch.convert(model, "fa")
    assert not model._forward_pre_hooks
    biotorch.revert(biotorch.convert(model, "dfa"))
    assert not model._forward_pre_hooks
    assert not any(isinstance(module, FeedbackLayer) for module in model.modules())
