"""`with biotorch.targets(y):` and the rules that send targets or signs in the place of the error."""

import threading

import pytest
import torch
from networks import batch, labels, mlp
from torch import nn
from torch.nn import functional as F

import biotorch
from biotorch.testing import net

SENDING = ("drtp", "sdfa")


def hidden_gradient(model, y=None, scale=None, factor=1.0, n=4) -> torch.Tensor:
    """Of the first layer's W, for the mean cross entropy times `factor`."""
    model.zero_grad()
    context = biotorch.targets(labels(n) if y is None else y, scale)
    with context:
        output = model(batch(n))
    (F.cross_entropy(output, labels(n)) * factor).backward()
    return model[0].weight.grad.clone()


def test_drtp_without_targets_is_an_error_that_names_the_cure():
    model = biotorch.convert(mlp(), "drtp")
    with pytest.raises(RuntimeError, match=r"with biotorch\.targets\(y\)"):
        F.cross_entropy(model(batch()), labels()).backward()


def test_sdfa_needs_none():
    model = biotorch.convert(mlp(), "sdfa", seed=1)
    F.cross_entropy(model(batch()), labels()).backward()
    torch.testing.assert_close(model[0].weight.grad, hidden_gradient(model))


def test_drtp_takes_the_targets_and_not_the_error():
    model = biotorch.convert(mlp(), "drtp", seed=1)
    first = hidden_gradient(model)
    with torch.no_grad():
        model[4].bias += torch.tensor([3.0, -3.0, 1.0])  # another output, another error
    assert torch.equal(hidden_gradient(model), first)
    assert not torch.equal(hidden_gradient(model, labels(4).flip(0)), first)


def test_labels_and_one_hot_rows_are_one():
    model = biotorch.convert(mlp(), "drtp", seed=1)
    rows = F.one_hot(labels(), 3)
    for each in (rows, rows.float(), rows.bool()):
        assert torch.equal(hidden_gradient(model, each), hidden_gradient(model))


def test_ignored_labels_send_nothing():
    model = biotorch.convert(mlp(), "drtp", seed=1)
    assert not hidden_gradient(model, torch.full((4,), -100)).any()


@pytest.mark.parametrize("rule", SENDING)
def test_the_scale_is_the_weight_of_an_example(rule):
    """Without the scale a factor of the loss is lost, as the docs say; with it nothing is."""
    model = biotorch.convert(mlp(), rule, seed=1)
    plain = hidden_gradient(model)
    assert torch.equal(hidden_gradient(model, scale=0.25), plain)  # 1 / n is the default
    assert torch.equal(hidden_gradient(model, factor=1024.0), plain)
    scaled = hidden_gradient(model, factor=1024.0, scale=256.0)
    torch.testing.assert_close(scaled, plain * 1024)


@pytest.mark.parametrize("rule", SENDING)
def test_accumulated_halves_are_the_whole(rule):
    model = biotorch.convert(mlp(), rule, seed=1)
    whole = hidden_gradient(model, n=6)
    model.zero_grad()
    for part in (slice(0, 3), slice(3, 6)):
        with biotorch.targets(labels(6)[part], scale=1 / 6):
            output = model(batch(6)[part])
        (F.cross_entropy(output, labels(6)[part]) / 2).backward()
    torch.testing.assert_close(model[0].weight.grad, whole)


@pytest.mark.parametrize("rule", SENDING)
def test_under_bf16_it_is_that_of_full_precision(rule):
    model = biotorch.convert(mlp(), rule, seed=1)
    expected = hidden_gradient(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = hidden_gradient(model)
    assert F.cosine_similarity(found.flatten(), expected.flatten(), 0) > 0.99


def test_decided_in_the_forward_and_on_any_thread():
    model = biotorch.convert(mlp(), "drtp", seed=1)
    expected = hidden_gradient(model)
    model.zero_grad()
    with biotorch.targets(labels()):
        loss = F.cross_entropy(model(batch()), labels())
    with biotorch.targets(labels().flip(0)):
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()
    assert torch.equal(model[0].weight.grad, expected)


def test_nested_the_inner_ones_hold():
    model = biotorch.convert(mlp(), "drtp", seed=1)
    with biotorch.targets(labels().flip(0)):
        inner = hidden_gradient(model)
        with biotorch.targets(labels()):
            pass
    assert torch.equal(inner, hidden_gradient(model))


@pytest.mark.parametrize(
    ("y", "told"),
    [
        (torch.zeros(5, dtype=torch.long), r"targets of shape \(5,\) do not fit an output of shape \(4, 3\)"),
        (torch.full((4,), 3), "one integer label below 3"),
        (torch.zeros(4, 2), r"\(4, 2\) do not fit"),
        (torch.zeros(4), r"\(4,\) do not fit"),
    ],
)
def test_targets_that_do_not_fit_are_told(y, told):
    model = biotorch.convert(mlp(), "drtp")
    with pytest.raises(RuntimeError, match=told):
        hidden_gradient(model, y)


def test_no_tensor_is_refused():
    with pytest.raises(TypeError, match="not list"):
        biotorch.targets([1, 2])


def test_targets_per_token():
    model = biotorch.convert(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), "drtp", seed=1)
    x, y = torch.randn(2, 4, 6), torch.randint(3, (2, 4))
    gradients = []
    for targets in (y, y.flatten()):
        model.zero_grad()
        with biotorch.targets(targets):
            output = model(x)
        F.cross_entropy(output.flatten(0, 1), y.flatten()).backward()
        gradients.append(model[0].weight.grad.clone())
    assert torch.equal(*gradients)
    heard = -F.one_hot(y, 3).float() / 8 @ model[2].feedback  # each token its own
    delta = heard * (1 - model[1](model[0](x)) ** 2)
    expected = delta.flatten(0, 1).T @ x.flatten(0, 1)
    torch.testing.assert_close(gradients[0], expected.detach(), rtol=1e-4, atol=1e-6)


def test_each_layer_gets_the_signal_of_its_own_rule():
    """Two rules in one network send different things of one error."""
    x, y = batch(), labels()
    mixed = biotorch.convert(mlp(), {"0": "drtp", "*": "sdfa"}, seed=1)
    found = []
    for rule in ("drtp", "sdfa"):
        alone = biotorch.convert(mlp(), rule, seed=1)
        alone.load_state_dict(mixed.state_dict())
        found.append(alone)
    for model in (mixed, *found):
        with biotorch.targets(y):
            F.cross_entropy(model(x), y).backward()
    # A layer hands on what the rule of the layer behind it projects.
    assert torch.equal(mixed[0].weight.grad, found[1][0].weight.grad)
    assert not torch.equal(mixed[0].weight.grad, found[0][0].weight.grad)
    swapped = biotorch.convert(mlp(), {"0": "sdfa", "2": "drtp", "*": "sdfa"}, seed=1)
    swapped.load_state_dict(mixed.state_dict())
    with biotorch.targets(y):
        F.cross_entropy(swapped(x), y).backward()
    assert torch.equal(swapped[0].weight.grad, found[0][0].weight.grad)
    assert torch.equal(swapped[2].weight.grad, found[1][2].weight.grad)


def test_other_rules_ignore_them():
    for rule in ("dfa", "fa", "backpropagation"):
        model = biotorch.convert(mlp(), rule, seed=1)
        first = hidden_gradient(model)
        assert torch.equal(hidden_gradient(model, labels().flip(0), scale=9.0), first)


@pytest.mark.parametrize("rule", SENDING)
def test_gradient_alignment_and_audit_need_no_block(rule):
    model = net(rule)
    assert biotorch.audit(model, torch.randn(2, 2, 8, 8)).leak == 0
    angles = biotorch.metrics.gradient_alignment(model, F.cross_entropy, torch.randn(4, 2, 8, 8), labels())
    assert angles["head"] < 0.1
    assert 0 < angles["features.5"] < 180
