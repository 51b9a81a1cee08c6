"""Weights that are used without their layer: refused in the first backward pass; other uses of W are not."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import biotorch


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.c(self.through_b(self.a(x).tanh()).tanh())

    def through_b(self, h):
        return self.b(h)


class Read(Net):
    def through_b(self, h):
        return F.linear(h, self.b.weight, self.b.bias)


class Scaled(Net):
    def through_b(self, h):
        return h @ (self.b.weight * 0.5).t()


class Multiplied(Net):
    def through_b(self, h):
        return (h.unsqueeze(1) * self.b.weight).sum(-1)


class HeadRead(Net):
    def forward(self, x):
        return F.linear(self.b(self.a(x).tanh()).tanh(), self.c.weight)


class Skipped(Net):
    def forward(self, x):
        return self.c(self.a(x)[:, :4].tanh())


class Tied(nn.Module):
    """A head with the weight of the embedding."""

    def __init__(self):
        super().__init__()
        self.table, self.a, self.head = nn.Embedding(7, 5), nn.Linear(5, 5), nn.Linear(5, 7, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x):
        return self.head(self.a(self.table(x)).tanh())


def batch():
    return torch.randn(7, 6)


@pytest.mark.parametrize("rule", ["fa", "dfa", "usf", "kp"])
@pytest.mark.parametrize(("kind", "layer"), [(Read, "b"), (Scaled, "b"), (Multiplied, "b"), (HeadRead, "c")])
def test_a_weight_that_is_multiplied_outside_of_its_layer_is_refused_by_name(kind, layer, rule):
    net = biotorch.convert(kind(), rule)
    with pytest.raises(RuntimeError, match=rf"^{layer}: its weight is used outside of the layer, by the network"):
        net(batch()).sum().backward()


def test_the_parent_is_named():
    net = biotorch.convert(nn.Sequential(nn.Linear(6, 6), Read()), "fa")
    with pytest.raises(RuntimeError, match=r"^1\.b: .*, by 1 .*\{'1\.b': None"):
        net(batch()).sum().backward()


@pytest.mark.parametrize("renew", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"])
def test_a_copy_is_checked_for_itself(renew):
    net = biotorch.convert(Read(), "fa")
    net.b.weight  # noqa: B018  (the first use, which starts the check of the original)
    net = renew(net)
    with pytest.raises(RuntimeError, match="used outside"):
        net(batch()).sum().backward()


@pytest.mark.parametrize(
    "begin",
    [lambda net: net.load_state_dict(net.state_dict()), lambda net: [penalty(net).backward() for _ in range(9)]],
)
def test_loading_and_penalties_alone_do_not_end_the_check(begin):
    net = biotorch.convert(Read(), "fa")
    net.b.weight  # noqa: B018
    begin(net)
    with pytest.raises(RuntimeError, match="used outside"):
        net(batch()).sum().backward()


def penalty(net):
    return sum(p.square().sum() + p.abs().mean() * p.norm() for p in net.parameters())


@pytest.mark.parametrize("kind", [Net, Skipped])
def test_penalties_and_skipped_layers_raise_nothing(kind):
    net = biotorch.convert(kind(), "fa")
    penalty(net).backward()
    (net(batch()).sum() + penalty(net)).backward()
    (net(batch()).sum() * (1 + net.b.weight.square().sum())).backward()


def test_a_head_tied_to_an_embedding_raises_nothing():
    net = biotorch.convert(Tied(), "fa")
    net(torch.arange(7)).sum().backward()


def test_a_layer_left_on_backpropagation_may_be_read():
    net = biotorch.convert(Read(), {"b": "backpropagation", "*": "fa"})
    net(batch()).sum().backward()


def test_true_gradients_and_the_audit_may_read():
    net = biotorch.convert(Read(), "fa")
    with biotorch.true_gradients(net):
        net(batch()).sum().backward()
    assert biotorch.audit(net, batch()).layers["b"] == "weights"


def test_the_check_ends_with_the_first_update():
    net = biotorch.convert(Net(), "fa")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for hooks in (1, 0):
        net(batch()).sum().backward()
        optimizer.step()
        assert len(net.b.weight._backward_hooks or ()) == hooks
