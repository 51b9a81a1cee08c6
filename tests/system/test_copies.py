"""Copies of a model under any rule (deepcopy, pickle, state_dict) are whole, equal and independent."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from followed_feedback import backward, network
from rule_names import RULES, TRAINING
from torch import nn
from torch.nn.utils import parameters_to_vector

import biotorch
from biotorch.testing import LAYER_NAMES, assert_all_learn, assert_identical, gradients, images, net

pytestmark = pytest.mark.usefixtures("targets")


def saved_and_loaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), saved_and_loaded]
copied_by = pytest.mark.parametrize("copied", COPIES, ids=["deepcopy", "pickle", "torch.save"])
every_rule = pytest.mark.parametrize("rule", RULES)


@every_rule
@copied_by
def test_a_copy_trains_every_layer_as_the_original_does(rule, copied):
    model = net(rule)
    found = gradients(copied(model), images())
    assert_all_learn(found, model)
    assert_identical(found, gradients(model, images()))


@every_rule
@copied_by
def test_a_copy_made_between_forward_and_backward_trains_every_layer(rule, copied):
    model = net(rule)
    model(images(seed=1))  # its graph is alive and unused
    assert_identical(gradients(copied(model), images()), gradients(model, images()))


@every_rule
@copied_by
def test_a_copy_is_independent(rule, copied):
    model = net(rule, constrain_weights=True)
    twin = copied(model)
    before = {name: value.clone() for name, value in twin.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gradients(model, images())
    model(images()).sum().backward()
    optimizer.step()
    assert not torch.equal(parameters_to_vector(model.parameters()), parameters_to_vector(twin.parameters()))
    assert all(torch.equal(value, before[name]) for name, value in twin.state_dict().items())
    pointers = [{tensor.data_ptr() for tensor in m.state_dict().values()} for m in (model, twin)]
    assert not pointers[0] & pointers[1]


@every_rule
@copied_by
def test_a_copy_keeps_the_rule_and_its_options(rule, copied):
    twin = copied(net(rule, gradient_clip=True, init="kaiming"))
    for name in LAYER_NAMES:
        assert twin.get_submodule(name).rule == biotorch.rules.make(rule, gradient_clip=True, init="kaiming")


@pytest.mark.parametrize("rule", TRAINING)
def test_a_copy_of_a_method_s_own_layer_can_be_pickled(rule):
    module = __import__(f"biotorch.layers.{rule}", fromlist=["Linear"])
    layer = module.Linear(4, 3, output_dim=3)
    twin = pickle.loads(pickle.dumps(layer))
    assert type(twin) is module.Linear
    assert_identical(gradients(twin, torch.ones(2, 4)), gradients(layer, torch.ones(2, 4)))


@every_rule
def test_a_state_dict_restores_the_model_to_the_bit(rule):
    model, other = net(rule, constrain_weights=True), net(rule, constrain_weights=True)
    biotorch.convert(other, rule, copy_weights=False, constrain_weights=True, seed=99)  # another W, another B
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert_identical(other.state_dict(), model.state_dict())
    assert_identical(gradients(other, images()), gradients(model, images()))


@pytest.mark.parametrize("rule", TRAINING)
def test_the_state_dict_holds_the_feedback_of_every_layer(rule):
    model = net(rule)
    held = {key.removesuffix(".feedback") for key in model.state_dict() if key.endswith(".feedback")}
    assert held == (set() if rule == "backpropagation" else set(LAYER_NAMES))


@every_rule
def test_a_state_dict_of_the_unconverted_model_loads_where_asked_loosely(rule):
    torch.manual_seed(1)
    plain = type(net(rule))()
    model = net(rule)
    feedback = {key: value.clone() for key, value in model.state_dict().items() if "feedback" in key}
    outcome = model.load_state_dict(plain.state_dict(), strict=False)
    assert set(outcome.missing_keys) <= set(feedback)
    assert not outcome.unexpected_keys
    assert torch.equal(model.head.weight, plain.head.weight)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in feedback.items())


@pytest.mark.parametrize("rule", [name for name in RULES if biotorch.rules.get(name).has_update()])
def test_a_state_dict_without_the_draws_is_incomplete(rule):
    state = net(rule).state_dict()
    del state["head.feedback_draws"]
    with pytest.raises(RuntimeError, match=r"Missing key.*head\.feedback_draws"):
        net(rule).load_state_dict(state)


# Parts, tied layers, the last reference ----------------------------------------------------------


@pytest.mark.parametrize("rule", ["fa", "kp", "brsf"])
def test_a_part_of_tied_layers_can_be_copied_alone(rule):
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    model = biotorch.convert(nn.Sequential(first, nn.Tanh(), second), rule)
    for part in (model[2], model[:1], nn.ModuleList([model[2], model[0]])):
        for again in (copy.deepcopy(part), pickle.loads(pickle.dumps(part))):
            assert_identical(again.state_dict(), part.state_dict())
    alone = copy.deepcopy(model[2])
    optimizer = torch.optim.SGD(alone.parameters(), lr=0.1, weight_decay=0.1)
    before = alone.feedback.clone()
    alone(torch.ones(1, 6)).sum().backward()
    optimizer.step()
    assert torch.equal(alone.feedback, before) == (rule == "fa")
    shallow = copy.copy(model[0])
    assert shallow.connections[0].layer is shallow
    assert model[0].connections[0].layer is model[0]


@pytest.mark.parametrize("rule", ["brsf", "sa"])
def test_tied_layers_that_are_moved_apart_share_b_again(rule):
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    model = biotorch.convert(nn.Sequential(first, nn.Tanh(), second), rule)
    second.double()
    first.double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(1, 6).double()).sum().backward()
    optimizer.step()
    assert torch.equal(first.feedback, second.feedback)


@pytest.mark.parametrize("rule", ["fa", "kp", "brsf"])
def test_a_network_goes_with_its_last_reference_and_leaves_nothing_on_its_weights(rule):
    model = network(rule)
    backward(model, 0)
    layer, weight = weakref.ref(model[0]), model[0].weight
    gc.disable()
    try:
        del model
        assert layer() is None
    finally:
        gc.enable()
    assert not weight._backward_hooks
