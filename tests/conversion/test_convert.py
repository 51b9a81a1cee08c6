"""What `convert` keeps of a network, and which rule each layer gets."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import RULES, batch, gradients, images, labels, mlp, same, state
from torch import nn
from torch.nn import functional as F

import biotorch
from biotorch.layers import FeedbackLayer

pytestmark = pytest.mark.usefixtures("targets")


def feedback(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: m.feedback for name, m in model.named_modules() if isinstance(m, FeedbackLayer)}


def rules(model: nn.Module) -> dict[str, str]:
    return {name: m.rule.name for name, m in model.named_modules() if isinstance(m, FeedbackLayer)}


# Identity: what belongs to the user's network stays ---------------------------------------------


def test_a_root_layer_is_converted_in_place():
    layer = nn.Linear(4, 3)
    assert biotorch.convert(layer, "fa") is layer
    assert isinstance(layer, FeedbackLayer)
    assert layer.feedback.shape == layer.weight.shape


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(4, 3),
        nn.Conv1d(4, 3, 2),
        nn.Conv2d(4, 3, 2),
        nn.Conv3d(4, 3, 2),
        nn.ConvTranspose1d(4, 3, 2),
        nn.ConvTranspose2d(4, 3, 2),
        nn.ConvTranspose3d(4, 3, 2),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_converted_layer_is_still_an_instance_of_its_torch_class(layer):
    torch_type = type(layer)
    converted = biotorch.convert(layer, "fa")
    assert isinstance(converted, torch_type)
    assert isinstance(converted, FeedbackLayer)


def test_every_parent_of_a_shared_layer_sees_the_converted_layer():
    class TwoParents(nn.Module):
        def __init__(self):
            super().__init__()
            shared = nn.Linear(6, 6)
            self.a, self.b = nn.Sequential(shared, nn.ReLU()), nn.ModuleDict({"again": shared})

    model = biotorch.convert(TwoParents(), "fa")
    assert model.a[0] is model.b["again"]
    assert isinstance(model.b["again"], FeedbackLayer)
    # One layer, one W and one B: nothing was duplicated for the second parent.
    assert len(list(model.parameters())) == 2
    assert len(list(model.buffers())) == 1


@pytest.mark.parametrize("copy_weights", [True, False])
def test_tied_weights_stay_tied_and_share_their_feedback(copy_weights):
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    model[2].weight = model[0].weight
    biotorch.convert(model, "fa", copy_weights=copy_weights)
    assert model[0].weight is model[2].weight
    assert model[0].feedback.data_ptr() == model[2].feedback.data_ptr()
    assert not torch.equal(model[0].feedback[:3], model[4].feedback)


def test_tied_layers_still_share_their_feedback_after_an_update_redraws_it():
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    model[2].weight = model[0].weight
    biotorch.convert(model, "brsf")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = model[0].feedback.clone()
    F.cross_entropy(model(batch()), labels()).backward()
    optimizer.step()
    assert not torch.equal(model[0].feedback, before)
    assert torch.equal(model[0].feedback, model[2].feedback)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rule", RULES)
def test_dtype_survives_and_the_network_runs_in_it(rule, dtype):
    model = biotorch.convert(mlp().to(dtype), rule)
    assert {tensor.dtype for tensor in [*model.parameters(), *model.buffers()]} == {dtype}
    found = gradients(model, batch().to(dtype), labels())
    assert {gradient.dtype for gradient in found.values()} == {dtype}


@pytest.mark.parametrize("rule", RULES)
def test_a_network_on_the_meta_device_converts_and_stays_there(rule):
    with torch.device("meta"):
        model = mlp()
    biotorch.convert(model, rule, copy_weights=False)
    assert {tensor.device.type for tensor in [*model.parameters(), *model.buffers()]} == {"meta"}
    assert set(rules(model).values()) == {rule}


def test_feedback_that_starts_at_the_weights_converts_on_the_meta_device_too():
    for rule in ("fa", "frsf", "usf"):
        model = biotorch.convert(mlp().to("meta"), rule, feedback_init="weight")
        assert model[0].feedback.is_meta


@pytest.mark.parametrize("rule", RULES)
def test_memory_format_of_weights_and_activations_survives(rule):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).to(memory_format=torch.channels_last)
    biotorch.convert(model, rule)
    for index in (0, 2):
        assert model[index].weight.is_contiguous(memory_format=torch.channels_last)
    x = images(size=8).contiguous(memory_format=torch.channels_last)
    assert model(x).is_contiguous(memory_format=torch.channels_last)


def test_training_flags_survive_layer_by_layer():
    model = mlp()
    model.eval()
    model[2].train()
    before = {name: m.training for name, m in model.named_modules()}
    biotorch.convert(model, "fa")
    assert {name: m.training for name, m in model.named_modules()} == before


def test_requires_grad_survives_and_frozen_weights_get_no_gradient():
    model = mlp()
    model[2].weight.requires_grad_(False)
    biotorch.convert(model, "fa", copy_weights=False)
    found = gradients(model, batch(), labels())
    assert "2.weight" not in found
    assert found.keys() == {"0.weight", "0.bias", "2.bias", "4.weight", "4.bias"}


def test_hooks_of_the_user_survive_and_run_once():
    model, calls = mlp(), []
    model[0].register_forward_pre_hook(lambda *_: calls.append("pre"))
    model[0].register_forward_hook(lambda *_: calls.append("forward"))
    model[0].weight.register_hook(lambda _: calls.append("gradient"))
    biotorch.convert(model, "fa")
    gradients(model, batch(), labels())
    assert calls == ["pre", "forward", "gradient"]


@pytest.mark.parametrize("copy_weights", [True, False])
def test_an_optimizer_built_before_conversion_trains_the_converted_network(copy_weights):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    biotorch.convert(model, "dfa", copy_weights=copy_weights)
    before = state(model)
    F.cross_entropy(model(batch()), labels()).backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name


# W and B -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_copying_weights_leaves_outputs_equal_to_the_bit(rule):
    model, x = mlp(), batch()
    expected, parameters = model(x), state(model)
    biotorch.convert(model, rule, init="normal")  # copy_weights: `init` concerns B alone
    assert torch.equal(model(x), expected)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in parameters.items())


@pytest.mark.parametrize("init", ["xavier", "kaiming", "normal"])
def test_drawing_weights_again_gives_every_rule_the_same_ones(init):
    drawn = []
    original = mlp()
    for rule in RULES:
        model = biotorch.convert(copy.deepcopy(original), rule, copy_weights=False, seed=3, init=init)
        drawn.append({name: p.detach() for name, p in model.named_parameters() if "feedback" not in name})
    assert all(same(drawn[0], other) for other in drawn[1:])
    assert not torch.equal(drawn[0]["0.weight"], original[0].weight)


def test_a_seed_decides_the_feedback():
    first, again, other = (feedback(biotorch.convert(mlp(), "fa", seed=seed)) for seed in (1, 1, 2))
    assert same(first, again)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_the_default_seed_is_that_of_torch():
    torch.manual_seed(5)
    first = feedback(biotorch.convert(mlp(), "fa"))
    again = feedback(biotorch.convert(mlp(), "fa"))  # the generator has moved on, the seed has not
    torch.manual_seed(6)
    other = feedback(biotorch.convert(mlp(), "fa"))
    assert same(first, again)
    assert not torch.equal(first["0"], other["0"])


@pytest.mark.parametrize("rule", ["brsf", "dfa", "fa", "frsf"])
def test_layers_of_one_shape_get_different_feedback(rule):
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    b = feedback(biotorch.convert(model, rule))
    assert not torch.equal(b["0"], b["2"])
    assert not torch.equal(b["2"], b["4"])


@pytest.mark.parametrize("rule", RULES)
def test_conversion_and_training_never_touch_the_global_generator(rule):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = torch.get_rng_state()
    biotorch.convert(model, rule, copy_weights=False)
    F.cross_entropy(model(batch()), labels()).backward()
    optimizer.step()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_weight_tied_across_two_rules_is_drawn_once():
    # Drawn a second time, it would no longer be the W that the first layer's B and norm were taken from.
    def tied():
        model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
        model[2].weight = model[0].weight
        return model

    first, plain = biotorch.rules.make("fa", feedback_init="weight", constrain_weights=True), tied()
    model = biotorch.convert(tied(), {"0": first, "*": "usf"}, copy_weights=False, seed=1)
    biotorch.convert(plain, "usf", copy_weights=False, seed=1)
    assert torch.equal(model[0].feedback, model[0].weight)
    assert model[0].initial_norm == model[0].weight.norm()
    assert torch.equal(model[0].weight, plain[0].weight)
