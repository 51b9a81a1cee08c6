"""Other ways out of a network: torch.fx, export, torch.jit, torch.func, quantization. The rule is kept or refused."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import batch, images, mlp, same
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn.utils import parametrizations
from torchvision.models import resnet18, swin_transformer
from torchvision.models.feature_extraction import create_feature_extractor

import biotorch
from biotorch.layers import FeedbackLayer, Product

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.(ao.quantization|jit).*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:(Please use quant_min|torch.quantize_per_tensor):UserWarning"),
]
LOST = r"0: an exported or traced network has lost its rule.*torch\.no_grad\(\).*biotorch\.revert"


def gradients(model: nn.Module, x: Tensor, **kwargs: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    y = model(x, **kwargs)
    (y["fc"] if isinstance(y, dict) else y).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def mlp_under(rule: str) -> nn.Module:
    return biotorch.convert(mlp(), rule)


# torch.fx ----------------------------------------------------------------------------------------


class Layers(nn.Module):
    """Every forward of the package's layers, in one network."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.gru, self.lstm = (
            nn.MultiheadAttention(8, 2, batch_first=True),
            nn.GRUCell(8, 8),
            nn.LSTMCell(8, 8),
        )
        self.rnn, self.fc = nn.RNNCell(8, 8), nn.Bilinear(8, 8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.attention(x, x, x, need_weights=False)
        h = self.gru(y[:, 0])
        h, c = self.lstm(h, (h, h))
        return self.fc(self.rnn(h, c), c)


@pytest.mark.parametrize("rule", ["fa", "dfa"])
@pytest.mark.parametrize("way", [torch.fx.symbolic_trace, lambda model: create_feature_extractor(model, ["fc"])])
def test_a_traced_network_keeps_its_layers_whole_and_learns_by_their_rule(way, rule):
    for build, x in ((lambda: resnet18(num_classes=3), images()), (Layers, torch.randn(3, 5, 8))):
        model = biotorch.convert(build(), rule).eval()
        expected = gradients(model, x)
        traced = way(model)
        assert same(gradients(traced, x), expected)
        assert same(gradients(copy.deepcopy(traced).eval(), x), expected)
        layers = {name for name, module in model.named_modules() if isinstance(module, FeedbackLayer)}
        assert layers <= {node.target for node in traced.graph.nodes if node.op == "call_module"}


def test_modules_that_read_their_layers_weights_are_kept_whole():
    model = swin_transformer.SwinTransformer([4, 4], 8, [2], [2], [2, 2], num_classes=3, stochastic_depth_prob=0.0)
    biotorch.convert(model, "fa").eval()
    assert same(gradients(torch.fx.symbolic_trace(model), images()), gradients(model, images()))


def test_a_block_that_is_cut_off_must_be_a_leaf():
    model = biotorch.convert(resnet18(num_classes=3), "dfa", shortcuts="cut").eval()
    for context in (torch.no_grad(), torch.enable_grad()):
        with context, pytest.raises(RuntimeError, match=r"layer1\.0\.conv1: its block .* leaf module of the tracer"):
            torch.fx.symbolic_trace(model)
    block = type(model.layer1[0])
    traced = create_feature_extractor(model, ["fc"], tracer_kwargs={"leaf_modules": [block]})
    assert same(gradients(traced, images()), gradients(model, images()))


class Gain(nn.Linear):
    pass


def test_a_layer_of_ones_own_must_be_a_leaf():
    from biotorch.layers import LAYER_TYPES

    known = dict(LAYER_TYPES)
    try:

        @biotorch.register_layer(Gain)
        class FeedbackGain(FeedbackLayer, Gain):
            def forward(self, x):
                return Gain.forward(self, x) if self.plain else self.carry("weight", x, self.bias, Product())

        model = biotorch.convert(nn.Sequential(Gain(6, 3)), "fa")
        with pytest.raises(RuntimeError, match=r"0: torch\.fx must keep this layer whole.*leaf_modules"):
            torch.fx.symbolic_trace(model)
    finally:
        LAYER_TYPES.clear()
        LAYER_TYPES.update(known)


# Exports -----------------------------------------------------------------------------------------


def convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3600, 3))


def export(model: nn.Module, x: Tensor) -> nn.Module:
    return torch.export.export(model, (x,)).module()


WAYS_OUT = {"export": export, "jit.trace": torch.jit.trace}


@pytest.mark.parametrize(
    ("rule", "options"), [("fa", {}), ("dfa", {"feedback": "shared"}), ("kp", {"constrain_weights": True})]
)
@pytest.mark.parametrize("way", WAYS_OUT)
def test_an_export_for_training_is_refused_and_one_without_gradients_computes_the_same(way, rule, options):
    for build, x in ((mlp, batch()), (convolutions, images())):
        model = biotorch.convert(build(), rule, **options)
        with pytest.raises(RuntimeError, match=LOST):
            WAYS_OUT[way](model, x)
        model.eval()
        with torch.no_grad():
            assert torch.equal(WAYS_OUT[way](model, x)(x), model(x))
        with biotorch.true_gradients(model):
            trained = WAYS_OUT[way](model, x)
        assert_close(gradients(trained, x), true_gradients(model, x))


def true_gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    return gradients(biotorch.revert(copy.deepcopy(model)), x)


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_scripting_is_refused_with_the_cure():
    with pytest.raises(
        RuntimeError, match=r"^0: torch\.jit\.script cannot.*biotorch\.revert\(copy\.deepcopy\(model\)\)$"
    ):
        torch.jit.script(biotorch.convert(mlp(), "fa"))


@pytest.mark.parametrize("parametrized", [False, True])
def test_quantization_is_refused_where_it_would_skip_the_layers(parametrized):
    model = nn.Sequential(nn.ReLU(), *mlp())
    if parametrized:
        parametrizations.weight_norm(model[1])
    biotorch.convert(model, "fa")
    cure = r"^1: torch\.ao\.quantization does not know .*biotorch\.revert"
    with pytest.raises(RuntimeError, match=cure):
        torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    model.train().qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    with pytest.raises(RuntimeError, match=cure):
        torch.ao.quantization.prepare_qat(model)
    assert not hasattr(model[1], "qconfig")
    quantized = torch.ao.quantization.quantize_dynamic(biotorch.revert(mlp_under("fa")), {nn.Linear})
    assert type(quantized[0]) is torch.ao.nn.quantized.dynamic.Linear


# torch.func --------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("rule", ["fa", "dfa"])
def test_torch_func_is_refused_alike_in_eager_mode_and_compiled(rule, compiled):
    model, x = mlp_under(rule), batch()

    def loss(parameters):
        return functional_call(model, parameters, (x,)).square().sum()

    torch.compiler.reset()
    gradient = torch.compile(grad(loss), backend="eager") if compiled else grad(loss)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    with pytest.raises(RuntimeError, match=r"^0: torch\.func .*biotorch\.true_gradients\(model\)"):
        gradient(parameters)
    with biotorch.true_gradients(model):
        assert_close(gradient(parameters), true_gradients(model, x))
    with torch.no_grad():
        torch.testing.assert_close(torch.func.vmap(model)(x), model(x))
