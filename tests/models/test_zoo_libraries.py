"""`timm/<name>` and `hf/<name>`: from scratch, and from a local folder. Nothing is downloaded."""

from __future__ import annotations

import sys

import pytest
import torch
from networks import images, labels
from torch.nn import functional as F

import biotorch
from biotorch import models

VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 8}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2}


@pytest.fixture
def timm():
    return pytest.importorskip("timm", reason="timm is not installed: pip install 'biotorch-feedback[timm]'")


@pytest.fixture
def transformers(monkeypatch):
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed: pip install 'biotorch-feedback[hf]'"
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return transformers


def tokens(length: int = 12) -> torch.Tensor:
    return torch.randint(11, (2, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("package", "name", "extra"), [("timm", "timm/resnet18", "timm"), ("transformers", "hf/vit", "hf")]
)
def test_a_missing_library_names_the_extra_that_installs_it(package, name, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    cure = rf"'{name}' needs {package}: pip install 'biotorch-feedback\[{extra}\]'"
    with pytest.raises(ModuleNotFoundError, match=cure):
        models.build(name)


# timm ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_timm_builds_for_the_images_from_scratch(name, timm):
    model = models.build(f"timm/{name}", 5, input_shape=(1, 32, 32))
    assert type(model) is type(timm.create_model(name))
    assert model(images(channels=1)).shape == (2, 5)


def test_timm_keeps_its_own_size_and_classes_unless_told(timm):
    model = models.build("timm/vit_tiny_patch16_224")
    assert model.num_classes == 1000
    assert model.patch_embed.img_size == (224, 224)
    given = models.build("timm/vit_tiny_patch16_224", input_shape=(3, 32, 32), img_size=64, depth=1)
    assert given.patch_embed.img_size == (64, 64)
    assert len(given.blocks) == 1


@pytest.mark.parametrize("rule", ["fa", "dfa"])
def test_a_timm_network_trains_under_a_rule(rule, timm):
    model = biotorch.convert(models.build("timm/resnet18", 5, input_shape=(3, 32, 32)), rule)
    F.cross_entropy(model(images()), labels(2, 5)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet1888", {}, "architecture of timm 'resnet1888'.*'resnet18'"),
        ("resnet18.a9_in1k", {}, "architecture of timm 'resnet18.a9_in1k'.*'resnet18.a"),
        ("resnet18", {"nonsense": 1}, "'timm/resnet18' cannot be built with these arguments.*nonsense"),
        ("resnet18", {"img_size": 32}, "'timm/resnet18' cannot be built with these arguments.*img_size"),
    ],
)
def test_wrong_names_and_arguments_of_timm_are_errors(name, arguments, message, timm):
    with pytest.raises(ValueError, match=message):
        models.build(f"timm/{name}", **arguments)


# Hugging Face -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("vit", VIT),
        ("convnext", {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}),
        ("resnet", {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "embedding_size": 8}),
    ],
)
def test_an_image_classifier_by_model_type(kind, arguments, transformers):
    model = models.build(f"hf/{kind}", 5, input_shape=(1, 32, 32), **arguments)
    assert isinstance(model, models.HuggingFace)
    assert model.training
    assert model(images(channels=1)).shape == (2, 5)
    assert model.network.config.num_channels == 1


def test_attributes_of_the_configuration_win_over_the_shape(transformers):
    model = models.build("hf/vit", 5, input_shape=(3, 32, 32), image_size=64, attn_implementation="eager", **VIT)
    assert model.network.config.image_size == 64
    assert model.network.config._attn_implementation == "eager"
    wide = models.build("hf/vit", 5, input_shape=(3, 32, 64), **VIT)
    assert wide(torch.randn(2, 3, 32, 64)).shape == (2, 5)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("gpt2", GPT2),
        ("bert", {key: VIT[key] for key in VIT if key != "patch_size"}),
        ("llama", {"num_key_value_heads": 2, **{key: VIT[key] for key in VIT if key != "patch_size"}}),
    ],
)
def test_a_language_model_is_causal_and_every_token_is_data(kind, arguments, transformers):
    model = models.build(f"hf/{kind}", 11, input_shape=(12,), **arguments).eval()
    x = tokens()
    other = x.clone()
    other[:, 7] = (other[:, 7] + 1) % 11
    before = model(x)
    assert before.shape == (2, 12, 11)
    change = (before - model(other)).abs().amax((0, 2))
    assert not change[:7].any()
    assert change[7:].any()
    config = model.network.config
    assert config.bos_token_id is config.eos_token_id is config.pad_token_id is None
    embedding = model.network.get_input_embeddings()
    assert embedding.padding_idx is None
    assert embedding.num_embeddings == 11


@pytest.mark.parametrize("rule", ["fa", "dfa"])
def test_networks_of_transformers_train_under_a_rule(rule, transformers):
    model = biotorch.convert(models.build("hf/vit", 5, input_shape=(3, 32, 32), **VIT), rule)
    F.cross_entropy(model(images()), labels(2, 5)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    model = biotorch.convert(models.build("hf/gpt2", 11, tie_word_embeddings=False, **GPT2), rule)
    F.cross_entropy(model(tokens()).flatten(0, 1), labels(24, 11)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_a_local_folder_with_weights(transformers, tmp_path):
    saved = models.build("hf/vit", 3, input_shape=(3, 32, 32), **VIT).network
    saved.save_pretrained(tmp_path)
    name = f"hf/{tmp_path}"
    same = models.build(name, 3, pretrained=True).eval()
    assert torch.equal(same(images()), saved.eval()(images()).logits)
    assert torch.equal(models.build(name, pretrained=True).eval()(images()), same(images()))
    other = models.build(name, 7, pretrained=True)
    assert other(images()).shape == (2, 7)
    assert other.training
    kept = {key: value for key, value in other.network.state_dict().items() if "classifier" not in key}
    assert all(torch.equal(value, saved.state_dict()[key]) for key, value in kept.items())
    scratch = models.build(name, 7)
    assert scratch(images()).shape == (2, 7)
    assert not all(torch.equal(value, scratch.network.state_dict()[key]) for key, value in kept.items())


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("vit", {"hiden_size": 3}, "configuration of 'hf/vit' 'hiden_size'.*'hidden_size'"),
        ("vit", {"num_labels": 3}, "configuration of 'hf/vit' 'num_labels'"),
        ("vit", {"hidden_size": "x"}, "'hf/vit' cannot be built with these arguments.*hidden_size"),
        ("vitt", {}, "unknown model type of transformers 'vitt'.*'vit"),
        ("nobody/nothing", {}, "'hf/nobody/nothing' cannot be read as a hub id or a local folder"),
        ("vit", {"pretrained": True}, "'hf/vit' is a model type, which has no weights"),
        ("wav2vec2", {}, "'hf/wav2vec2' .*neither an image classifier nor a causal language model"),
        ("gpt2", {"input_shape": (20,), "n_positions": 16}, "at most 16 tokens, but the sequences have 20"),
    ],
)
def test_wrong_names_and_arguments_of_transformers_are_errors(name, arguments, message, transformers):
    with pytest.raises(ValueError, match=message):
        models.build(f"hf/{name}", **arguments)


def test_a_pretrained_language_model_is_refused(transformers, tmp_path):
    models.build("hf/gpt2", 11, **GPT2).network.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is a pretrained language model.*biotorch\.convert"):
        models.build(f"hf/{tmp_path}", 11, pretrained=True)
