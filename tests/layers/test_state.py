"""States of networks whose B learns; B of several tensors."""

import copy
import io

import pytest
import torch
from learned_feedback import EXACT, backward, build, step
from networks import TRAINING, batch, mlp
from timm.utils import ModelEmaV2
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

import biotorch
from biotorch.rules import registry
from biotorch.testing import Net, assert_all_learn, assert_close, assert_identical, images, net
from biotorch.testing.checks import optimizer_of, told_gradients, train

# States ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["kp", "dkp", "fa"])
def test_a_state_has_no_key_but_b(rule):
    model, plain = net(rule), net("backpropagation")
    step(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
    added = set(model.state_dict()) - set(plain.state_dict())
    assert {name.rpartition(".")[2] for name in added} == {"feedback"}


@pytest.mark.parametrize("rule", ["kp", "dkp"])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad])
def test_a_training_goes_on_with_the_same_bits(rule, kind):
    model = net(rule)
    optimizer = build(kind, model.parameters(), lr=1e-3)
    step(model, optimizer, range(3))
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    resumed = net(rule)
    other = build(kind, resumed.parameters(), lr=1e-3)
    step(resumed, other, range(7, 9))  # it has a state of its own, which goes
    states = torch.load(file, weights_only=True)
    resumed.load_state_dict(states[0])
    other.load_state_dict(states[1])
    twin = copy.deepcopy(model)
    beside = build(kind, twin.parameters(), lr=1e-3)
    beside.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, its in ((model, optimizer), (resumed, other), (twin, beside)):
        step(each, its, range(3, 6))
    assert_identical(resumed.state_dict(), model.state_dict())
    assert_identical(twin.state_dict(), model.state_dict())


def test_a_state_from_before_b_was_a_parameter_is_read():
    """It had the momenta of B's own optimizer beside B, and numbers of draws."""
    model, other = net("kp"), net("kp")
    step(other, torch.optim.SGD(other.parameters(), lr=0.1))
    old = dict(other.state_dict())
    for name in ("features.0", "features.2", "features.5", "head"):
        old[f"{name}.feedback_draws"] = torch.tensor([7, 3])
        old[f"{name}.feedback_state_momentum_buffer"] = old[f"{name}.feedback"] * 0
    model.load_state_dict(old)
    assert_identical(model.state_dict(), other.state_dict())


def test_averages_meet_the_same_tensors_before_and_after_the_first_step():
    model = biotorch.convert(nn.Sequential(nn.Linear(8, 8, bias=False), nn.Tanh(), nn.Linear(8, 8, bias=False)), "kp")
    average, swa = ModelEmaV2(model, decay=0.9), torch.optim.swa_utils.AveragedModel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1, momentum=0.9)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    seen = []
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
        average.update(model)
        swa.update_parameters(model)
        expected = {name: 0.9 * expected[name] + 0.1 * value for name, value in model.state_dict().items()}
        seen.append(model[2].feedback.detach().clone())
    assert_close(average.module.state_dict(), expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(swa.module[2].feedback.detach(), torch.stack(seen).mean(0))


@pytest.mark.parametrize("rule", ["kp", "dkp", "brsf"])
def test_distributed_checkpoints_take_and_give_the_state(rule):
    model, other = net(rule), net(rule)
    step(model, torch.optim.AdamW(model.parameters(), lr=1e-3), range(2))
    found = get_model_state_dict(model)
    assert_identical(found, model.state_dict())
    set_model_state_dict(other, found)
    assert_identical(other.state_dict(), model.state_dict())


# B of several tensors ----------------------------------------------------------------------------


@pytest.fixture
def factorised():
    @biotorch.rules.register("factorised", transports="nothing")
    class Factorised(biotorch.rules.FeedbackRule):
        learns = True

        def initial_feedback(self, weight, blank, generator):
            out, rest = len(blank), blank[0].numel()
            up, down = (torch.randn(shape, generator=generator).to(blank) for shape in ((out, 2), (2, rest)))
            return {"up": up, "down": down}

        def feedback(self, weight, state):
            return (state["up"] @ state["down"]).view(weight.shape)

    yield "factorised"
    del registry._REGISTRY["factorised"]


def test_a_rule_of_one_s_own_may_learn_b_as_a_product(factorised):
    """The gradient of B = up @ down is W's; each factor has its part of it, and the two are parameters of their own."""
    model = biotorch.convert(mlp().double(), factorised, seed=1)
    layer = model[2]
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias", "feedback_up", "feedback_down"]
    backward(model)
    up, down, dw = layer.feedback_up, layer.feedback_down, layer.weight.grad
    torch.testing.assert_close(up.grad, dw @ down.detach().T, **EXACT)
    torch.testing.assert_close(down.grad, up.detach().T @ dw, **EXACT)
    torch.testing.assert_close(layer.effective_feedback, (up @ down).detach(), **EXACT)
    assert len(list(biotorch.feedback_parameters(model))) == 2 * len(biotorch.layers.connections(model))
    other = biotorch.convert(mlp().double(), factorised, seed=2)
    other.load_state_dict(model.state_dict())
    assert_identical(copy.deepcopy(other).state_dict(), model.state_dict())
    assert set(biotorch.audit(model, batch().double()).layers.values()) == {"nothing"}
    assert not any("feedback" in name for name in biotorch.revert(model).state_dict())


@pytest.mark.parametrize(("reads", "verdict"), [(torch.sign, "signs"), (lambda w: w, "weights")])
def test_the_audit_finds_what_a_learned_b_reads_of_w(reads, verdict):
    """B = M f(W): the gradient of M and what reaches upstream are made of it."""

    @biotorch.rules.register("reading", transports=verdict)
    class Reading(biotorch.rules.FeedbackRule):
        learns = True

        def initial_feedback(self, weight, blank, generator):
            return {"magnitude": torch.rand(blank.shape, generator=generator).to(blank)}

        def feedback(self, weight, state):
            return state["magnitude"] * reads(weight)

    try:
        found = biotorch.audit(biotorch.convert(mlp(), "reading"), batch())
    finally:
        del registry._REGISTRY["reading"]
    assert set(found.layers.values()) == {verdict}


# The meta device ---------------------------------------------------------------------------------


def from_meta(rule: str, **options) -> Net:
    with torch.device("meta"):
        model = biotorch.convert(Net(), rule, **options)
    return model.to_empty(device="cpu")


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        *((rule, {}) for rule in TRAINING if rule != "backpropagation"),
        ("dfa", {"feedback": "shared"}),
        ("backpropagation", {"constrain_weights": True}),
    ],
)
def test_a_b_without_values_is_refused_until_it_has_some(rule, options):
    model, source = from_meta(rule, **options), net(rule, **options)
    with torch.no_grad():
        model(images())  # needs no B
        for name, parameter in model.named_parameters():
            if "feedback" not in name:
                parameter.copy_(source.get_parameter(name))
    with pytest.raises(RuntimeError, match=r"(features\.0|head): its \w+ has no values.*load a state_dict with B"):
        model(images())
    for name, tensor in model.state_dict().items():  # as a broadcast from another process does, too
        tensor.copy_(source.state_dict()[name])
    assert_identical(told_gradients(model, images()), told_gradients(source, images()))


@pytest.mark.parametrize("rule", ["fa", "brsf", "dkp"])
def test_a_network_from_the_meta_device_trains_as_the_one_whose_state_it_loads(rule):
    model, source = from_meta(rule), net(rule)
    model.load_state_dict(source.state_dict())
    for each in (model, source):
        train(each, optimizer_of(each), range(2))
    assert_identical(model.state_dict(), source.state_dict())


def test_a_network_from_the_meta_device_may_be_converted_again():
    model = from_meta("fa")
    model.load_state_dict(Net().state_dict(), strict=False)
    assert_all_learn(told_gradients(biotorch.convert(model, "fa"), images()), model)
