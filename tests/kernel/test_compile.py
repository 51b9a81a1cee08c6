"""torch.compile gives the gradients of eager mode; feedback rules compile as one graph."""

import pytest
import torch
from networks import batch, mlp
from rule_names import DIRECT, LAYERWISE, RULES, one_per_path, without_decay
from torch import nn

import biotorch
from biotorch.testing import assert_all_learn, assert_close, collect, gradients, images, loss_of, net

pytestmark = pytest.mark.usefixtures("targets")

# The direct rules' backward walks the autograd graph, so their layers stay outside the compiled graphs.
FULLGRAPH = {**dict.fromkeys(LAYERWISE, True), **dict.fromkeys(DIRECT, False)}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()


def compiled(model, rule, backend: str = "aot_eager"):
    return torch.compile(model, backend=backend, fullgraph=FULLGRAPH[rule])


@pytest.mark.parametrize("rule", RULES)
def test_compiled_gradients_are_those_of_eager_mode(rule):
    model = net(rule)
    expected = gradients(model, images())
    loss_of(compiled(model, rule)(images())).backward()
    found = collect(model)
    assert_all_learn(found, model)
    assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_gradients_compiled_by_inductor_are_those_of_eager_mode(rule):
    model = net(rule)
    expected = gradients(model, images())
    loss_of(compiled(model, rule, "inductor")(images())).backward()
    assert_close(collect(model), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", one_per_path(LAYERWISE))
def test_the_loss_compiles_into_the_same_graph(rule):
    model = net(rule)
    expected = gradients(model, images())
    torch.compile(lambda x: loss_of(model(x)), backend="aot_eager", fullgraph=True)(images()).backward()
    assert_close(collect(model), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", one_per_path(RULES))
def test_every_option_compiles(rule):
    options = {"gradient_clip": True, "constrain_weights": True, "init": "normal"}
    model = net(rule, **options)
    expected = gradients(model, images())
    loss_of(compiled(model, rule)(images())).backward()
    assert_close(collect(model), expected, rtol=1e-4, atol=1e-5)


@without_decay
@pytest.mark.parametrize("rule", RULES)
def test_compiled_training_follows_eager_training(rule):
    """Weights, and brsf's redrawn feedback, move between calls: nothing may be frozen into the graph."""
    states = []
    for compile_it in (False, True):
        model = net(rule, constrain_weights=True)
        step = compiled(model, rule) if compile_it else model
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for seed in range(3):
            optimizer.zero_grad()
            loss_of(step(images(seed=seed))).backward()
            optimizer.step()
        states.append(model.state_dict())
    assert_close(*reversed(states), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", one_per_path(RULES))
def test_compiled_bf16_autocast_gives_the_gradients_to_its_precision(rule):
    model = net(rule)
    expected = gradients(model, images())
    with torch.autocast("cpu", torch.bfloat16):
        output = compiled(model, rule)(images())
    loss_of(output.float()).backward()
    for name, gradient in collect(model).items():
        assert (gradient - expected[name]).norm() < 0.05 * expected[name].norm(), name


@pytest.mark.parametrize("rule", one_per_path(RULES))
def test_true_gradients_reach_a_compiled_model(rule):
    model = net(rule)
    step = compiled(model, rule)
    loss_of(step(images())).backward()
    ruled = collect(model)
    with biotorch.true_gradients(model):
        expected = gradients(model, images())
        loss_of(step(images())).backward()
        found = collect(model)
    assert_close(found, expected, rtol=1e-4, atol=1e-5)
    loss_of(step(images())).backward()
    assert_close(collect(model), ruled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", one_per_path(RULES))
def test_a_compiled_model_runs_without_gradients(rule):
    model = net(rule)
    with torch.no_grad():
        torch.testing.assert_close(compiled(model, rule)(images()), model(images()))


@pytest.mark.parametrize("rule", one_per_path(RULES))
@pytest.mark.parametrize(
    "layers",
    [
        lambda: [nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)],
        lambda: [nn.Conv1d(3, 4, 3, padding="same", padding_mode="circular"), nn.Tanh(), nn.Conv1d(4, 2, 2)],
        lambda: [nn.ConvTranspose1d(3, 4, 3, stride=2), nn.Tanh(), nn.ConvTranspose1d(4, 2, 2)],
    ],
    ids=["linear", "convolution", "transposed"],
)
def test_every_kind_of_layer_compiles(rule, layers):
    model = biotorch.convert(nn.Sequential(*layers()), rule)
    x = torch.randn(2, 3, 6)
    expected = gradients(model, x)
    loss_of(compiled(model, rule)(x)).backward()
    assert_close(collect(model), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", ["fa", pytest.param("dfa", marks=pytest.mark.slow)])
def test_a_recurrent_layer_is_unrolled_outside_of_the_graph(rule):
    """A graph of every step would take minutes to compile, for sequences of any length anew."""

    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.rnn, self.head = nn.Linear(3, 4), nn.LSTM(4, 5, 2, batch_first=True), nn.Linear(5, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.rnn(self.body(x).tanh())[0])

    model, x = biotorch.convert(Steps(), rule), torch.randn(2, 20, 3)
    expected, graphs = gradients(model, x), []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    step = torch.compile(model, backend=count)
    loss_of(step(x)).backward()
    assert_close(collect(model), expected, rtol=1e-4, atol=1e-5)
    assert sum(len(graph.graph.nodes) for graph in graphs) < 25
    loss_of(step(x[:, :7])).backward()
    with torch.no_grad():
        torch.testing.assert_close(step(x), model(x))


@pytest.mark.parametrize("rule", one_per_path(RULES))
def test_double_backward_through_a_compiled_model_is_refused(rule):
    x = images().requires_grad_()
    loss = loss_of(compiled(net(rule), rule)(x))

    def twice():
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        gradient.sum().backward()

    with pytest.raises(RuntimeError, match="double backward"):
        twice()


# Compiled parts and exports ----------------------------------------------------------------------


def test_layers_of_one_kind_share_their_compiled_graph():
    model = biotorch.convert(nn.Sequential(*(nn.Linear(8, 8) for _ in range(12))), "brsf")
    for layer in model:
        layer.compile(backend="aot_eager", fullgraph=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(2):
        model(torch.ones(2, 8)).sum().backward()
        optimizer.step()
    assert {layer.feedback_draws for layer in model} == {2}


def test_an_exported_network_needs_no_operator_of_ours():
    model = biotorch.convert(mlp(), "fa", constrain_weights=True).eval()
    with torch.no_grad():
        exported = torch.export.export(model, (batch(),))
    assert "biotorch" not in str(exported.graph)
