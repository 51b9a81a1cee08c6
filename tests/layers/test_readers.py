"""torchvision's Swin, whose attention reads the weights of its linear layers instead of calling them."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from networks import TRAINING, images, labels, same
from torch import nn
from torch.nn import functional as F
from torchvision.models import swin_transformer

import biotorch
from biotorch.layers import Reader

pytestmark = pytest.mark.usefixtures("targets")

VERSIONS = {
    "swin_t": (swin_transformer.ShiftedWindowAttention, {}),
    "swin_v2_t": (
        swin_transformer.ShiftedWindowAttentionV2,
        {"block": swin_transformer.SwinTransformerBlockV2, "downsample_layer": swin_transformer.PatchMergingV2},
    ),
}
both = pytest.mark.parametrize("version", VERSIONS)


def swin(version: str) -> nn.Module:
    torch.manual_seed(0)
    options = VERSIONS[version][1]
    return swin_transformer.SwinTransformer(
        [4, 4], 8, [2, 2], [2, 2], [2, 2], num_classes=3, stochastic_depth_prob=0.0, **options
    )


def found(model: nn.Module) -> dict[str, torch.Tensor]:
    F.cross_entropy(model(images()), labels(2)).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return gradients


@both
@pytest.mark.parametrize("rule", TRAINING)
def test_outputs_stay_the_same_to_the_bit(version, rule):
    plain, x = swin(version), images()
    converted = biotorch.convert(copy.deepcopy(plain), rule, strict=True)
    assert torch.equal(converted(x), plain(x))
    with torch.no_grad():
        assert torch.equal(converted.eval()(x), plain.eval()(x))


@both
def test_backpropagation_is_autograd_and_feedback_is_not(version):
    plain = swin(version)
    expected = found(plain)
    converted = biotorch.convert(copy.deepcopy(plain), "backpropagation")
    for name, gradient in found(converted).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)
    under_fa = found(biotorch.convert(copy.deepcopy(plain), "fa"))
    assert set(under_fa) == set(expected)
    # Of one block the last layer that is called is the MLP's; attention's own layers hear it through B.
    for name in ("features.1.0.attn.qkv.weight", "features.1.0.attn.proj.weight"):
        assert not torch.allclose(under_fa[name], expected[name], rtol=0.1)
    with biotorch.true_gradients(under := biotorch.convert(copy.deepcopy(plain), "dfa")):
        for name, gradient in found(under).items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


@both
@pytest.mark.parametrize("rule", ["fa", "dfa"])
def test_the_weights_of_attention_are_transported_by_no_rule_that_says_so(version, rule):
    result = biotorch.audit(biotorch.convert(swin(version), rule).eval(), images(1))
    assert result.leak == 0.0
    assert sum("attn.qkv" in name for name in result.layers) == 4


@both
@pytest.mark.parametrize("rule", TRAINING)
def test_every_parameter_learns(version, rule):
    model = biotorch.convert(swin(version), rule)
    gradients = found(model)
    assert set(gradients) == {name for name, _ in model.named_parameters()}
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    # The positions that `cpb_mlp` reads cancel each other, and with them what one error would teach its B under dkp.
    still = [name for name, gradient in gradients.items() if not gradient.any()]
    assert [name for name in still if not (rule == "dkp" and name.endswith("cpb_mlp.0.feedback"))] == []


@both
def test_copies_pickles_and_states_are_readers_that_compute_the_same(version):
    model = biotorch.convert(swin(version), "fa", seed=1)
    expected = found(model)
    loaded = biotorch.convert(swin(version), "fa", seed=2)
    loaded.load_state_dict(model.state_dict())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
        assert sum(isinstance(m, Reader) for m in other.modules()) == 4
        assert same(found(other), expected)


@both
def test_reverting_gives_back_torch_s_class(version):
    kind = VERSIONS[version][0]
    model = biotorch.convert(swin(version), "fa")
    attention = model.features[1][0].attn
    assert isinstance(attention, kind)
    assert type(attention) is not kind
    biotorch.revert(model)
    assert type(attention) is kind
    assert [type(m) for m in model.modules()] == [type(m) for m in swin(version).modules()]
    assert same(found(model), found(swin(version)))
    assert type(pickle.loads(pickle.dumps(model)).features[1][0].attn) is kind


@both
def test_converting_again_replaces_the_rule(version):
    model = biotorch.convert(swin(version), "fa", seed=1)
    biotorch.convert(model, "usf", seed=1)
    assert same(found(model), found(biotorch.convert(swin(version), "usf", seed=1)))
