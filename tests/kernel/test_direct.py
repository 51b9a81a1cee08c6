"""Where the direct rules take their error from, and what they say when there is none."""

import copy

import pytest
import torch
from rule_names import PLAIN_DIRECT
from torch import nn

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

pytestmark = pytest.mark.parametrize("rule", PLAIN_DIRECT)


class TwoHeads(nn.Module):
    """A trunk, an auxiliary head in the middle, a layer that only the main head follows."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(6, 5)
        self.aux = nn.Linear(5, 2)
        self.body = nn.Linear(5, 4)
        self.main = nn.Linear(4, 3)

    def forward(self, x):
        h = self.trunk(x).tanh()
        return self.main(self.body(h).tanh()), self.aux(h)


def two_heads(rule) -> tuple[TwoHeads, torch.Tensor]:
    torch.manual_seed(0)
    return biotorch.convert(TwoHeads(), rule, output=["main", "aux"], seed=1), torch.randn(7, 6)


def test_hidden_layers_get_the_sum_of_the_projections_of_the_heads_above_them(rule):
    model, x = two_heads(rule)
    main, aux = model(x)
    (loss_of(main) + loss_of(aux)).backward()
    h = model.trunk(x).tanh()
    e_main, e_aux = (
        torch.autograd.grad(loss_of(z), z)[0] for z in (main.detach().requires_grad_(), aux.detach().requires_grad_())
    )
    # The trunk's output feeds both heads; what reaches it is what `body` and `aux` hand to their input.
    to_body = e_main @ model.body.feedback[:3]  # only the main head is downstream of body
    to_aux = e_aux @ model.aux.feedback[3:]  # each head uses its own error
    delta = (to_body + to_aux) * (1 - h**2)
    torch.testing.assert_close(model.trunk.weight.grad, (delta.T @ x).detach(), rtol=1e-4, atol=1e-5)
    hidden = (e_main @ model.main.feedback[:3]) * (1 - model.body(h).tanh() ** 2)
    torch.testing.assert_close(model.body.weight.grad, (hidden.T @ h).detach(), rtol=1e-4, atol=1e-5)


def test_a_layer_below_two_heads_projects_both_errors_by_its_own_rows(rule):
    """As above one layer deeper, where one layer's own B holds rows of both heads."""
    torch.manual_seed(0)
    model = biotorch.convert(nn.Sequential(nn.Linear(6, 6), TwoHeads()), rule, output=["1.main", "1.aux"], seed=1)
    x = torch.randn(7, 6)
    hidden = model[0](x)
    main, aux = model[1](hidden)
    (asked,) = torch.autograd.grad(loss_of(main) + loss_of(aux), hidden)
    e_main, e_aux = (
        torch.autograd.grad(loss_of(z), z)[0] for z in (main.detach().requires_grad_(), aux.detach().requires_grad_())
    )
    feedback = model[1].trunk.feedback
    torch.testing.assert_close(asked, e_main @ feedback[:3] + e_aux @ feedback[3:], rtol=1e-4, atol=1e-5)


def test_a_loss_on_one_head_alone_sends_that_head_s_error(rule):
    model, x = two_heads(rule)
    hidden = model.trunk(x)
    z = model.aux(hidden.tanh())
    loss_of(z).backward()
    learned = {name for name in collect(model) if "feedback" not in name}
    assert learned == {"trunk.weight", "trunk.bias", "aux.weight", "aux.bias"}


def test_losses_of_two_heads_may_go_backwards_one_after_the_other(rule):
    model, x = two_heads(rule)
    main, aux = model(x)
    (loss_of(main) + loss_of(aux)).backward()
    expected = collect(model)
    main, aux = model(x)
    loss_of(main).backward(retain_graph=True)
    loss_of(aux).backward()
    assert_close(collect(model), expected, rtol=1e-4, atol=1e-5)


def test_a_gradient_that_goes_around_the_output_layer_is_an_error(rule):
    model = net(rule)
    with pytest.raises(RuntimeError, match="did not come through the network's output layer"):
        loss_of(model.features(images())).backward()


def test_the_error_reaches_only_what_lies_upstream_of_the_output(rule):
    """A second network of the same rule that feeds the same loss keeps its own error."""
    model, other = net(rule), copy.deepcopy(net(rule))
    expected = gradients(model, images())
    expected_other = {name: 3 * value for name, value in gradients(other, images()).items()}
    (loss_of(model(images())) + 3 * loss_of(other(images()))).backward()
    assert_identical(collect(model), expected)
    assert_close(collect(other), expected_other, rtol=1e-5, atol=1e-6)


def test_an_output_layer_may_learn_by_backpropagation(rule):
    torch.manual_seed(7)
    model = biotorch.convert(Net(), {"head": "backpropagation", "*": rule}, seed=3)
    found = gradients(model, images())
    assert_all_learn(found, model)
    # It hands W^T e to the layer below it, which passes on nothing but the projected error: only
    # what lies directly under the head differs from the network with a direct head.
    expected = gradients(net(rule), images())
    below = ("features.5.weight", "features.5.bias")
    for name in found:
        assert torch.equal(found[name], expected[name]) == (name not in below), name


def test_a_frozen_output_layer_still_broadcasts(rule):
    model = net(rule)
    expected = {name: value for name, value in gradients(model, images()).items() if name.startswith("features")}
    model.head.requires_grad_(False)
    assert_identical(gradients(model, images()), expected)


def test_a_hidden_layer_ignores_the_gradient_that_arrives_from_the_layers_above(rule):
    """Equation (4): what a layer hands upstream depends on e alone, whatever lies between."""
    model, x = net(rule), images().requires_grad_()
    output = model(x)
    e = torch.ones_like(output)
    (first,) = torch.autograd.grad(output, x, e)
    with torch.no_grad():
        for layer in model.modules():
            if getattr(layer, "weight", None) is not None:
                layer.weight.normal_()
    (second,) = torch.autograd.grad(model(x), x, e)
    assert torch.equal(first, second)


def test_a_layer_used_twice_is_given_the_error_each_time(rule):
    shared = nn.Linear(6, 6)
    model = biotorch.convert(nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh(), nn.Linear(6, 3)), rule, seed=1)
    x = torch.randn(4, 6)
    first = model[0](x)
    second = model[2](first.tanh())
    output = model[4](second.tanh())
    output.sum().backward()
    e = torch.ones(4, 3)
    delta_second = (e @ model[4].feedback) * (1 - second.tanh() ** 2)
    delta_first = (e @ shared.feedback) * (1 - first.tanh() ** 2)
    expected = delta_second.T @ first.tanh() + delta_first.T @ x
    torch.testing.assert_close(shared.weight.grad, expected.detach())


def test_layers_built_by_hand_find_the_last_one(rule):
    build = biotorch.layers.Linear
    model = nn.Sequential(
        build(6, 5, rule=rule, output_dim=3), nn.Tanh(), build(5, 4, rule=rule, output_dim=3), nn.Tanh(),
        build(4, 3, rule=rule, output_dim=3),
    )  # fmt: skip
    h = model[:3](torch.randn(7, 6))
    (asked,) = torch.autograd.grad(loss_of(model[3:](h)), h, retain_graph=True)
    z = model[3:](h).detach().requires_grad_()
    (e,) = torch.autograd.grad(loss_of(z), z)
    torch.testing.assert_close(asked, (e @ model[4].feedback) * (1 - h.tanh() ** 2))
    assert_all_learn(gradients(model, torch.randn(7, 6)), model)


def test_layers_built_by_hand_with_the_wrong_output_size_are_refused(rule):
    model = nn.Sequential(*(biotorch.layers.Linear(6, 6, rule=rule, output_dim=3) for _ in range(2)))
    with pytest.raises(RuntimeError, match="output"):
        model(torch.randn(2, 6)).sum().backward()


def test_examples_and_positions_in_one_dimension_are_told_apart(rule):
    """As language models flatten their tokens before the output layer."""
    found = []
    for flatten in (nn.Flatten(0, 1), nn.Identity()):
        torch.manual_seed(0)
        model = biotorch.convert(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), flatten, nn.Linear(5, 3)), rule, seed=1)
        x = torch.randn(2, 4, 6, requires_grad=True)
        loss_of(model(x)).backward()
        found.append({**collect(model), "input": x.grad})
    assert_close(*found)


@pytest.mark.parametrize("rows", [3, 5])
def test_numbers_of_examples_that_do_not_divide_are_refused(rule, rows):
    class Selecting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.head = nn.Linear(6, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.head(self.hidden(x)[torch.arange(rows) % len(x)])

    model = biotorch.convert(Selecting(), rule)
    with pytest.raises(RuntimeError, match=rf"^hidden: .*{rows} example.*input has 4.*batch as the first dimension"):
        model(torch.randn(4, 6, requires_grad=True)).sum().backward()


def test_an_output_for_all_rows_makes_them_positions_of_one_example(rule):
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.head = nn.Linear(6, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.head(self.hidden(x).mean(0, keepdim=True))

    model, x = biotorch.convert(Pooled(), rule), torch.randn(4, 6, requires_grad=True)
    model(x).backward(torch.tensor([[1.0, 2.0, 3.0]]))
    torch.testing.assert_close(x.grad, (torch.tensor([1.0, 2.0, 3.0]) @ model.hidden.feedback).expand(4, 6))


def test_an_output_that_lost_the_batch_is_refused(rule):
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.head = nn.Linear(6, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.head(self.hidden(x).mean(0))

    model = biotorch.convert(Pooled(), rule)
    with pytest.raises(RuntimeError, match="batch as the first dimension"):
        model(torch.randn(4, 6, requires_grad=True)).sum().backward()


def test_an_error_left_by_an_earlier_pass_is_never_taken_for_this_one_s(rule):
    model = net(rule)
    h = model.features(images())
    torch.autograd.grad(loss_of(model.head(h)), h, retain_graph=True)  # leaves its error upstream
    torch.autograd.grad(loss_of(model.head(h)), model.head.weight, retain_graph=True)
    with pytest.raises(RuntimeError, match="did not come through the network's output layer"):
        h.sum().backward()
