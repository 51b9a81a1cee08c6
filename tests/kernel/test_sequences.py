"""Direct rules on outputs with positions, several outputs, and Hugging Face's models with the loss inside."""

from __future__ import annotations

import warnings

import pytest
import torch
import torchvision
from networks import images, labels
from torch import Tensor, nn
from torch.nn import functional as F

import biotorch
from biotorch.layers import connections
from biotorch.testing import assert_all_learn, assert_close, collect

pytestmark = pytest.mark.parametrize("rule", ["dfa"])


# A token's error ---------------------------------------------------------------------------------


def language_model(rule: str, **options) -> nn.Module:
    torch.manual_seed(0)
    model = biotorch.models.build("char_transformer", num_classes=7, context=6, width=8, depth=2, heads=2)
    return biotorch.convert(model.double(), rule, seed=1, **options)


def tokens(n: int = 3, length: int = 6) -> Tensor:
    return torch.randint(7, (n, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("feedback", ["kernel", "shared"])
def test_the_projection_brings_a_token_s_error_to_that_token_alone(rule, feedback):
    """Linear layers of the blocks act on each token: what they hand on is the token's own error, times B."""
    model = language_model(rule, feedback=feedback)
    block = model.blocks[0]
    h = torch.randn(3, 6, 8, dtype=torch.float64, requires_grad=True)
    handed = {}

    def keep(layer: nn.Module, received: tuple[Tensor], _) -> None:
        handed[layer.label] = received[0].clone()

    for layer in (block.linear1, block.linear2):
        layer.register_full_backward_hook(keep)
    z = model.head(model.norm(model.blocks[1](block(h))))
    e = torch.zeros_like(z)
    e[1, 2] = torch.randn(7, dtype=torch.float64)
    z.backward(e)
    assert len(handed) == 2
    for name, gradient in handed.items():
        feedback_matrix = connections(model)[name].feedback
        torch.testing.assert_close(gradient, e @ feedback_matrix)
        assert gradient[1, 2].any()


@pytest.mark.parametrize("shortcuts", ["keep", "cut"])
def test_no_error_reaches_a_token_of_the_future_or_another_example(rule, shortcuts):
    """Under direct feedback, nothing even flows from a token's error to another token's embedding with cuts."""
    model, x = language_model(rule, shortcuts=shortcuts), tokens()
    found = []
    model.embedding.register_forward_hook(lambda *a: (a[2].retain_grad(), found.append(a[2]))[0])
    model(x)[1, 2].sum().backward()
    reached = found[0].grad.abs().sum(-1) > 0
    expected = torch.zeros(3, 6, dtype=torch.bool)
    expected[1, 2] = True
    if shortcuts == "keep":  # attention of the blocks reads earlier tokens
        assert not reached[1, 3:].any()
        assert not reached[[0, 2]].any()
        assert reached[1, 2]
    else:
        assert torch.equal(reached, expected)


def test_flattened_logits_give_the_same_gradients(rule):
    """A loss takes (N T, classes), however the logits were flattened."""

    class Flattened(nn.Module):
        def __init__(self, flatten: bool) -> None:
            super().__init__()
            self.body, self.head, self.flatten = nn.Linear(5, 8), nn.Linear(8, 7), flatten

        def forward(self, x: Tensor) -> Tensor:
            h = self.body(x).tanh()
            return self.head(h.flatten(0, 1)) if self.flatten else self.head(h).flatten(0, 1)

    found = []
    for flatten in (True, False):
        torch.manual_seed(0)
        model = biotorch.convert(Flattened(flatten), rule, seed=1)
        F.cross_entropy(model(torch.ones(3, 6, 5) * torch.arange(6.0)[:, None]), tokens().flatten()).backward()
        found.append(collect(model))
    assert_close(*found)


# Several outputs ---------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("feedback", ["kernel", "shared"])
def test_auxiliary_heads_are_output_layers_and_everything_learns(rule, feedback):
    torch.manual_seed(0)
    model = torchvision.models.GoogLeNet(num_classes=5, aux_logits=True, init_weights=False)
    biotorch.convert(model, rule, feedback=feedback)
    marked = [name for name, m in model.named_modules() if getattr(m, "output", None) is not None]
    assert marked == ["aux1.fc2", "aux2.fc2", "fc"]
    assert connections(model)["conv1.conv"].feedback_shape == (15, 3, 7, 7)
    x, y = images(2, size=64), labels(2, 5)
    main, aux2, aux1 = model(x)
    (F.cross_entropy(main, y) + 0.3 * (F.cross_entropy(aux1, y) + F.cross_entropy(aux2, y))).backward()
    assert_all_learn(collect(model), model)


def test_a_network_without_its_auxiliary_heads_has_one_output(rule):
    with torch.device("meta"):
        model = torchvision.models.GoogLeNet(num_classes=5, aux_logits=False, init_weights=False)
    biotorch.convert(model, rule)
    assert connections(model)["conv1.conv"].feedback_shape == (5, 3, 7, 7)


def test_heads_that_the_user_names_replace_the_known_ones(rule):
    with torch.device("meta"):
        model = torchvision.models.Inception3(num_classes=5, init_weights=False)
    biotorch.convert(model, rule)
    assert connections(model)["Conv2d_1a_3x3.conv"].feedback_shape[0] == 10
    biotorch.convert(model, rule, output="fc")
    assert connections(model)["Conv2d_1a_3x3.conv"].feedback_shape[0] == 5


# Hugging Face ------------------------------------------------------------------------------------


def gpt2(**options) -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="Hugging Face's models need transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=11, n_positions=8, n_embd=8, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        bos_token_id=0, eos_token_id=0, **options,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


@pytest.mark.parametrize("dictionary", [True, False], ids=["ModelOutput", "tuple"])
@pytest.mark.parametrize("feedback", ["kernel", "shared"])
def test_a_language_model_with_its_loss_inside_learns_in_every_layer(rule, feedback, dictionary):
    model = biotorch.convert(gpt2(), rule, feedback=feedback, strict=True)
    x = torch.randint(11, (3, 6))
    result = model(input_ids=x, labels=x, return_dict=dictionary)
    (result.loss if dictionary else result[0]).backward()
    found = collect(model)
    assert len(connections(model)) == 2 * 4 + 1
    assert_all_learn(found, model)


def test_a_tied_output_matrix_stays_tied_and_learns_from_both_uses(rule):
    model = biotorch.convert(gpt2(), rule)
    embedding = model.transformer.wte
    assert model.lm_head.weight is embedding.weight
    x = torch.randint(11, (3, 6))
    model(input_ids=x, labels=x).loss.backward()
    tied = model.lm_head.weight.grad.clone()
    model.zero_grad()
    embedding.weight.requires_grad_(True)
    hidden = model.transformer(input_ids=x).last_hidden_state.detach()
    logits = model.lm_head(hidden)
    F.cross_entropy(logits[:, :-1].flatten(0, 1), x[:, 1:].flatten()).backward()
    of_output = model.lm_head.weight.grad
    assert of_output.any()
    assert (tied - of_output).abs().max() > 1e-6  # what the embedding adds


def test_the_output_of_a_converted_language_model_is_the_plain_one_s(rule):
    plain, x = gpt2().eval(), torch.randint(11, (3, 6))
    converted = biotorch.convert(gpt2().eval(), rule)
    with torch.no_grad():
        assert torch.equal(converted(x).logits, plain(x).logits)
    torch.testing.assert_close(converted(x).logits, plain(x).logits)


def test_a_language_model_transports_nothing_and_reverts_to_its_own_types(rule):
    model = gpt2().eval()
    kinds = [type(m) for m in model.modules()]
    biotorch.convert(model, rule, shortcuts="cut")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        result = biotorch.audit(model, {"input_ids": torch.randint(11, (2, 4)), "use_cache": False})
    assert {verdict for name, verdict in result.layers.items() if "wte" not in name} == {"nothing"}
    biotorch.revert(model)
    assert [type(m) for m in model.modules()] == kinds
