"""Conformance of every rule to the ways users build and walk the autograd graph."""

import threading

import pytest
import torch
from rule_names import BY_ERROR, DIRECT, LAYERWISE, RULES, TRAINING
from torch import nn
from torch.utils.checkpoint import checkpoint

import biotorch
from biotorch.testing import (
    Net,
    assert_all_learn,
    assert_close,
    assert_identical,
    collect,
    gradients,
    images,
    loss_of,
    net,
)

pytestmark = pytest.mark.usefixtures("targets")


def added(first, second):
    return {name: first[name] + second[name] for name in first}


@pytest.mark.parametrize("rule", RULES)
def test_features_and_head_called_by_hand_train_every_layer(rule):
    model = net(rule)
    loss_of(model.head(model.features(images()))).backward()
    assert_identical(collect(model), gradients(model, images()))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("sizes", [(5, 5), (5, 3)])
@pytest.mark.parametrize("interleaved", [False, True])
def test_two_forwards_before_one_backward_give_the_sum(rule, sizes, interleaved):
    model, x1, x2 = net(rule), images(sizes[0]), images(sizes[1], seed=1)
    expected = added(gradients(model, x1), gradients(model, x2))
    if interleaved:
        h1, h2 = model.features(x1), model.features(x2)
        z1, z2 = model.head(h1), model.head(h2)
    else:
        z1, z2 = model(x1), model(x2)
    (loss_of(z1) + loss_of(z2)).backward()
    assert_close(collect(model), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_two_forwards_may_be_driven_backwards_in_either_order(rule):
    model, x1, x2 = net(rule), images(), images(seed=1)
    expected = added(gradients(model, x1), gradients(model, x2))
    first, second = loss_of(model(x1)), loss_of(model(x2))
    second.backward()
    first.backward()
    assert_close(collect(model), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_the_loss_may_weigh_outputs_of_two_forwards_against_each_other(rule):
    """A contrastive loss: each output's error depends on the other, and goes back its own way."""
    model, x1, x2 = net(rule), images(), images(seed=1)
    z1, z2 = model(x1), model(x2)
    (z1 * z2).sum().backward()
    found = collect(model)
    (model(x1) * z2.detach()).sum().backward()
    first = collect(model)
    (model(x2) * z1.detach()).sum().backward()
    assert_close(found, added(first, collect(model)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_checkpointing_the_whole_model_gives_equal_gradients_to_the_bit(rule):
    model = net(rule)
    expected = gradients(model, images())
    loss_of(checkpoint(model, images(), use_reentrant=False)).backward()
    assert_identical(collect(model), expected)


@pytest.mark.parametrize("rule", RULES)
def test_checkpointing_the_features_gives_equal_gradients_to_the_bit(rule):
    model = net(rule)
    expected = gradients(model, images())
    loss_of(model.head(checkpoint(model.features, images(), use_reentrant=False))).backward()
    assert_identical(collect(model), expected)


@pytest.mark.parametrize("rule", LAYERWISE)
def test_reentrant_checkpointing_works_for_rules_that_go_layer_by_layer(rule):
    model = net(rule)
    expected = gradients(model, images())
    h = checkpoint(model.features, images().requires_grad_(), use_reentrant=True)
    loss_of(model.head(h)).backward()
    assert_identical(collect(model), expected)


@pytest.mark.parametrize("rule", DIRECT)
def test_reentrant_checkpointing_of_features_is_refused_with_the_cure(rule):
    model = net(rule)
    h = checkpoint(model.features, images().requires_grad_(), use_reentrant=True)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        loss_of(model.head(h)).backward()


@pytest.mark.parametrize("rule", RULES)
def test_retain_graph_gives_the_same_gradients_again(rule):
    model = net(rule)
    expected = gradients(model, images())
    loss = loss_of(model(images()))
    for retain in (True, False):
        loss.backward(retain_graph=retain)
        assert_identical(collect(model), expected)


@pytest.mark.parametrize("rule", TRAINING)
@pytest.mark.parametrize("asked", ["head.weight", "features.2.weight", "features.0.bias"])
def test_a_partial_grad_before_the_backward_disturbs_nothing(rule, asked):
    model = net(rule)
    expected = gradients(model, images())
    loss = loss_of(model(images()))
    (partial,) = torch.autograd.grad(loss, model.get_parameter(asked), retain_graph=True)
    loss.backward()
    assert torch.equal(partial, expected[asked])
    assert_identical(collect(model), expected)


@pytest.mark.parametrize("rule", RULES)
def test_a_partial_grad_of_another_loss_on_the_same_graph_disturbs_nothing(rule):
    """The error that the first pass leaves upstream must not be met by the second."""
    model = net(rule)
    expected = gradients(model, images())
    output = model(images())
    torch.autograd.grad(100 * output.sum(), model.head.weight, retain_graph=True)
    loss_of(output).backward()
    assert_identical(collect(model), expected)


@pytest.mark.parametrize("rule", TRAINING)
def test_a_gradient_asked_of_a_hidden_activation_is_the_one_the_rule_hands_it(rule):
    model = net(rule)
    h = model.features(images())
    (asked,) = torch.autograd.grad(loss_of(model.head(h)), h)
    seen = []
    h = model.features(images())
    h.register_hook(seen.append)
    loss_of(model.head(h)).backward()
    assert torch.equal(asked, seen[0])
    assert asked.abs().sum() > 0


@pytest.mark.parametrize("rule", TRAINING)
def test_features_extracted_and_kept_alive_leave_the_next_step_alone(rule):
    model = net(rule)
    expected = gradients(model, images())
    kept = model.features(images(seed=1))
    assert kept.requires_grad
    assert_identical(gradients(model, images()), expected)


@pytest.mark.parametrize("rule", TRAINING)
def test_a_backward_that_failed_leaves_the_next_step_alone(rule):
    model = net(rule)
    expected = gradients(model, images())

    def refuse(gradient):
        raise ValueError("interrupted")

    h = model.features(images(seed=1))
    h.register_hook(refuse)
    with pytest.raises(ValueError, match="interrupted"):
        loss_of(model.head(h)).backward()
    model.zero_grad()
    assert_identical(gradients(model, images()), expected)


class WithLoss(nn.Module):
    """As Hugging Face models: the loss is computed inside, and the logits are a by-product."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x):
        logits = self.body(x)
        return {"loss": loss_of(logits), "logits": logits}


@pytest.mark.parametrize("rule", RULES)
def test_a_loss_computed_inside_the_model_trains_every_layer(rule):
    torch.manual_seed(7)
    model = biotorch.convert(WithLoss(Net()), rule, seed=3)
    model(images())["loss"].backward()
    found = collect(model)
    assert_all_learn(found, model)
    # B is drawn by layer name: compare with the body of the same model, called as users do.
    loss_of(model.body(images())).backward()
    assert_identical(found, collect(model))


def in_threads(tasks) -> list:
    results, start = [None] * len(tasks), threading.Barrier(len(tasks))

    def work(index):
        start.wait()
        for _ in range(10):  # enough repetitions for the threads to overlap
            results[index] = tasks[index]()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("rule", BY_ERROR)
def test_two_threads_share_a_model(rule):
    model = net(rule)
    parameters = list(model.parameters())
    inputs = [images(), images(3, seed=1)]

    def task(x):
        return lambda: torch.autograd.grad(loss_of(model(x)), parameters)

    expected = [task(x)() for x in inputs]
    for found, wanted in zip(in_threads([task(x) for x in inputs]), expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("rule", BY_ERROR)
def test_two_threads_train_two_models(rule):
    models, inputs = [net(rule), net(rule)], [images(), images(3, seed=1)]
    expected = [gradients(net(rule), x) for x in inputs]
    found = in_threads([lambda m=m, x=x: gradients(m, x) for m, x in zip(models, inputs, strict=True)])
    for result, wanted in zip(found, expected, strict=True):
        assert_identical(result, wanted)
