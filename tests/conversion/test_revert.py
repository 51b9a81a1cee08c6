"""A converted network on disk and back, and back to an ordinary one: state_dict, safetensors, `revert`."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from rule_names import TRAINING, without_decay
from torch import nn

import biotorch
from biotorch.layers import FeedbackLayer, fa, is_feedback
from biotorch.testing import Net, images, loss_of, net

pytestmark = pytest.mark.usefixtures("targets")

FORMS = [*((rule, {}) for rule in TRAINING), ("dfa", {"feedback": "shared"}), ("dfa", {"shortcuts": "cut"})]


class Words(nn.Module):
    """Tokens (N, T) -> (N, T, 9) through every layer type that has several weight matrices, or none to convert."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.cell = nn.GRUCell(8, 8)
        self.mix = nn.Bilinear(8, 8, 8)
        self.head = nn.Linear(8, 9)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.encoder(self.embedding(tokens))
        x = torch.stack([self.cell(step) for step in x.unbind(1)], 1)
        return self.head(self.mix(x, x))


def tokens() -> torch.Tensor:
    return torch.arange(12).view(3, 4) % 9


def words(rule: str, seed: int = 3, **options: object) -> Words:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = Words()
    return biotorch.convert(model, rule, seed=seed, **options)


def trained(model: nn.Module, x: torch.Tensor) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(model(x)).backward()
        optimizer.step()
    return model


def gradients(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss_of(model(x)).backward()
    return {name: p.grad for name, p in model.named_parameters()}


@without_decay
@pytest.mark.filterwarnings("ignore:shortcuts='cut' found no")
@pytest.mark.parametrize(("rule", "options"), FORMS)
@pytest.mark.parametrize("way", ["torch", "safetensors"])
def test_a_saved_network_comes_back_exactly(rule, options, way, tmp_path):
    model, fresh = trained(words(rule, **options), tokens()), words(rule, seed=99, **options)
    if way == "torch":
        torch.save(model.state_dict(), tmp_path / "state.pt")
        state = torch.load(tmp_path / "state.pt", weights_only=True)
    else:
        safetensors = pytest.importorskip("safetensors.torch")
        safetensors.save_file(model.state_dict(), tmp_path / "state.safetensors")
        state = safetensors.load_file(tmp_path / "state.safetensors")
    fresh.load_state_dict(state)
    expected = gradients(model, tokens())
    for name, gradient in gradients(fresh, tokens()).items():
        assert torch.equal(gradient, expected[name]), name
    for model_ in (model, fresh):  # and goes on the same way: redraws too
        trained(model_, tokens())
    again = fresh.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


@without_decay
@pytest.mark.filterwarnings("ignore:shortcuts='cut' found no")
@pytest.mark.parametrize(("rule", "options"), FORMS)
def test_revert_gives_back_the_ordinary_network_with_the_trained_weights(rule, options):
    model, plain = trained(words(rule, constrain_weights=True, **options), tokens()), Words()
    weights = {name: value.clone() for name, value in model.state_dict().items() if not is_feedback(name)}
    with torch.no_grad():
        expected = model(tokens())
    assert biotorch.revert(model) is model
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]
    assert model.state_dict().keys() == plain.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model(tokens()), expected)
    for mine, theirs in zip(model.modules(), plain.modules(), strict=True):
        assert vars(mine).keys() == vars(theirs).keys()
    plain.load_state_dict(model.state_dict())
    true = gradients(plain, tokens())
    for name, gradient in gradients(model, tokens()).items():
        assert torch.equal(gradient, true[name]), name
    assert "biotorch" not in str(pickle.dumps(model.state_dict()))
    assert not any(isinstance(module, FeedbackLayer) for module in copy.deepcopy(model).modules())


def test_an_optimizer_steps_on_after_revert_without_the_rule():
    model = words("brsf", constrain_weights=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    biotorch.revert(model)
    before = model.head.weight.norm().item()
    loss_of(model(tokens())).backward()
    optimizer.step()
    assert model.head.weight.norm().item() != before


def test_revert_of_a_single_layer_of_a_plain_network_and_of_no_network():
    layer = biotorch.layers.Linear(3, 2, rule="fa")
    assert type(biotorch.revert(layer)) is nn.Linear
    plain = Net()
    state = {name: value.clone() for name, value in plain.state_dict().items()}
    assert all(torch.equal(value, state[name]) for name, value in biotorch.revert(plain).state_dict().items())
    with pytest.raises(TypeError, match=r"takes a torch\.nn\.Module"):
        biotorch.revert("model")


@pytest.mark.parametrize("rule", TRAINING)
def test_reverted_and_converted_again_is_as_if_nothing_had_been(rule):
    model = net(rule)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    again = biotorch.convert(biotorch.revert(model), rule, seed=3).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in expected.items())
    assert again.keys() == expected.keys()
    loss_of(model(images())).backward()


def test_layers_of_a_method_revert_too():
    model = nn.Sequential(fa.Linear(4, 3), nn.ReLU(), fa.Linear(3, 2))
    assert [type(layer) for layer in biotorch.revert(model)] == [nn.Linear, nn.ReLU, nn.Linear]
