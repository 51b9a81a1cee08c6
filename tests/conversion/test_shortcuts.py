"""shortcuts="cut": what leaves a residual block upstream is the projected error, and nothing else."""

import copy

import pytest
import torch
from rule_names import DIRECT
from torch import nn

import biotorch
from biotorch.testing import assert_all_learn, gradients, loss_of

pytestmark = [pytest.mark.parametrize("rule", DIRECT), pytest.mark.usefixtures("targets")]


class Block(nn.Module):
    """x + conv(act(x)): the convolution's input has the block's input's shape."""

    def __init__(self, conv: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.act, self.conv = act, conv

    def forward(self, x):
        h = self.act(x)
        return x + self.conv(h)


def network(rule, conv=None, act=None, **options) -> nn.Sequential:
    torch.manual_seed(0)
    block = Block(conv or nn.Conv2d(4, 4, 3, padding=1), act or nn.Identity())
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), block, nn.Flatten(), nn.Linear(4 * 36, 3))
    return biotorch.convert(model, rule, blocks=["1"], seed=1, **options)


def leaves_the_block(model, x) -> tuple[torch.Tensor, torch.Tensor]:
    """What the block hands upstream, and what its convolution alone does, at the same error."""
    h = model[0](x)
    z = model[1:](h)
    e = torch.ones_like(z)
    (block,) = torch.autograd.grad(z, h, e)
    h = h.detach().requires_grad_()
    (layer,) = torch.autograd.grad(model[2:](model[1].conv(h)), h, e)
    return block, layer


CONVOLUTIONS = {
    "zeros": lambda: nn.Conv2d(4, 4, 3, padding=1),
    "same": lambda: nn.Conv2d(4, 4, 3, padding="same"),
    "same, even kernel": lambda: nn.Conv2d(4, 4, 2, padding="same"),
    "groups": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=2),
    "1x1": lambda: nn.Conv2d(4, 4, 1),
    **{
        mode: lambda mode=mode: nn.Conv2d(4, 4, 3, padding=1, padding_mode=mode)
        for mode in ("circular", "reflect", "replicate")
    },
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_cut_block_hands_on_the_projection_of_its_first_layer(rule, name):
    block, layer = leaves_the_block(network(rule, CONVOLUTIONS[name](), shortcuts="cut"), torch.randn(5, 2, 6, 6))
    torch.testing.assert_close(block, layer)


def test_kept_shortcuts_carry_gradient_beside_the_projection(rule):
    block, layer = leaves_the_block(network(rule), torch.randn(5, 2, 6, 6))
    assert not torch.allclose(block, layer)


@pytest.mark.parametrize("shortcuts", ["keep", "cut"])
def test_a_block_may_begin_with_an_activation_in_place(rule, shortcuts):
    x = torch.randn(5, 2, 6, 6)
    found = []
    for act in (nn.ReLU(inplace=True), nn.Sequential(nn.ReLU())):
        model = network(rule, act=act, shortcuts=shortcuts)
        if not getattr(act, "inplace", False):
            # The in-place block adds the activated input: the same network, written without it.
            model[1].forward = lambda h, block=model[1]: (a := block.act(h)) + block.conv(a)
        found.append(gradients(model, x))
    assert_all_learn(found[0], model)
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name])


def test_a_cut_network_trains_from_the_current_error_in_every_forward(rule):
    model, x1, x2 = network(rule, shortcuts="cut"), torch.randn(5, 2, 6, 6), torch.randn(5, 2, 6, 6)
    expected = [gradients(model, x) for x in (x1, x2)]
    (loss_of(model(x1)) + loss_of(model(x2))).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[0][name] + expected[1][name], rtol=1e-4, atol=1e-5)


def test_one_pattern_of_blocks_may_be_a_string(rule):
    model = network(rule, shortcuts="cut")
    assert biotorch.rules.make(rule, blocks="layer1.*").blocks == ("layer1.*",)
    assert model[1].conv.rule.blocks == ("1",)


def test_a_pattern_that_names_no_block_is_an_error(rule):
    with pytest.raises(biotorch.ConversionError, match="unknown block pattern 'bolck'"):
        biotorch.convert(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)), rule, shortcuts="cut", blocks=["bolck"])


def test_a_cut_that_finds_nothing_to_cut_says_so(rule):
    with pytest.warns(biotorch.ConversionWarning, match="found no residual block to cut"):
        biotorch.convert(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)), rule, shortcuts="cut")


def test_a_copied_block_cuts_with_its_own_feedback(rule):
    model = network(rule, shortcuts="cut")
    block = copy.deepcopy(model[1])
    with torch.no_grad():
        block.conv.feedback.zero_()
    h = torch.randn(5, 4, 6, 6, requires_grad=True)
    model[2:](block(h)).sum().backward()
    assert not h.grad.any()


def test_a_block_that_is_called_by_keyword_is_cut_like_any_other(rule):
    model, x = network(rule, shortcuts="cut"), torch.randn(5, 2, 6, 6)
    found = []
    for call in (model[1], lambda h: model[1](x=h)):
        h = model[0](x).detach().requires_grad_()
        loss_of(model[2:](call(h))).backward()
        found.append(h.grad)
    assert found[0].any()
    assert torch.equal(*found)
