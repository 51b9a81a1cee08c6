"""Bad input: each mistake has its own clear error, which names the value and the cure."""

from __future__ import annotations

import dataclasses
import pickle
import re
import signal
from pathlib import Path

import pytest
import torch
from networks import RULES, TRAINING, batch, images, labels, mlp
from torch import nn
from torch.nn import functional as F

import biotorch
from biotorch import ConversionError, errors
from biotorch.layers import Conv2d, Linear, fa
from biotorch.models import fa as fa_models

pytestmark = pytest.mark.usefixtures("targets")

DIRECT = "did not come through the network's output layer"

# Names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "nearest"), [("dfaa", "dfa"), ("backprop", "backpropagation"), ("frfs", "frsf")])
def test_an_unknown_rule_names_the_nearest_one(name, nearest):
    for attempt in (
        lambda: biotorch.convert(mlp(), name),
        lambda: biotorch.convert(mlp(), {"*": name}),
        lambda: biotorch.BioModule(mlp(), mode=name),
        lambda: Linear(2, 2, rule=name),
        lambda: Linear(2, 2, layer_config={"type": name}),
        lambda: biotorch.rules.make(name),
    ):
        with pytest.raises(ValueError, match=f"unknown rule '{name}'.*{nearest}"):
            attempt()


@pytest.mark.parametrize("rule", RULES)
def test_an_unknown_option_names_the_nearest_one(rule):
    options = {"gradient_clipping": True}
    for attempt in (
        lambda: biotorch.convert(mlp(), rule, **options),
        lambda: biotorch.BioModule(mlp(), rule, layer_config={"type": rule, "options": options}),
        lambda: Linear(2, 2, output_dim=2, layer_config={"type": rule, "options": options}),
    ):
        with pytest.raises(ValueError, match=rf"option of (rule )?'?{rule}'? 'gradient_clipping'.*'gradient_clip'"):
            attempt()


def test_an_option_of_another_rule_is_not_an_option():
    with pytest.raises(ConversionError, match="option of fa 'shortcuts'"):
        biotorch.convert(mlp(), "fa", shortcuts="cut")


def test_a_bad_value_is_not_reported_as_an_unknown_option_too():
    # One mistake, one message: `shortcuts` is an option of dfa, only its value is wrong.
    with pytest.raises(ConversionError, match="'cutt'") as caught:
        biotorch.convert(mlp(), {"4": "backpropagation", "*": "dfa"}, shortcuts="cutt")
    assert "unknown option" not in str(caught.value)


@pytest.mark.parametrize("option", ["init", "feedback_init"])
@pytest.mark.parametrize("rule", RULES)
def test_an_unknown_initializer_names_the_nearest_one(rule, option):
    with pytest.raises(ValueError, match=f"unknown {option} 'xavieer'.*'xavier'"):
        biotorch.convert(mlp(), rule, **{option: "xavieer"})


@pytest.mark.parametrize("rule", ["dfa", "brsf"])
def test_feedback_cannot_start_at_the_weights_where_that_means_nothing(rule):
    with pytest.raises(ValueError, match="feedback_init='weight'"):
        biotorch.convert(mlp(), rule, feedback_init="weight")


def test_w_cannot_be_initialised_by_itself():
    with pytest.raises(ValueError, match="unknown init 'weight'"):
        biotorch.convert(mlp(), "fa", init="weight")


def test_a_layer_pattern_that_meets_no_layer_is_an_error():
    with pytest.raises(ConversionError, match="'classifier'"):
        biotorch.convert(mlp(), {"classifier": "bp", "*": "fa"})
    with pytest.raises(ConversionError, match=r"pattern '4': an earlier pattern matches all"):
        biotorch.convert(mlp(), {"*": "fa", "4": "bp"})


def test_an_unknown_output_layer_is_an_error():
    with pytest.raises(ConversionError, match=r"output layer 'fc'"):
        biotorch.convert(mlp(), "dfa", output="fc")


def test_options_beside_a_finished_rule_are_an_error():
    with pytest.raises(ConversionError, match=r"gradient_clip.*give them to the rule"):
        biotorch.convert(mlp(), biotorch.rules.make("fa"), gradient_clip=True)


@pytest.mark.parametrize("rule", [3, None, ["fa"]])
def test_a_rule_of_the_wrong_type_is_an_error_that_says_so(rule):
    with pytest.raises((TypeError, ValueError), match="rule"):
        biotorch.convert(mlp(), rule)


def test_a_rule_name_cannot_be_taken_twice():
    with pytest.raises(ValueError, match="'bp' is already registered"):
        biotorch.rules.register("bp", transports="nothing")(type("Again", (biotorch.rules.FeedbackRule,), {}))


# Networks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [nn.Sequential(), nn.ReLU(), nn.BatchNorm2d(3)], ids=lambda m: type(m).__name__)
def test_a_network_with_nothing_to_convert_is_an_error(model):
    with pytest.raises(ConversionError, match=r"no layer to convert.*Linear"):
        biotorch.convert(model, "fa")


def test_a_network_with_nothing_to_convert_says_what_it_found():
    with pytest.raises(ConversionError, match="no layer to convert") as caught:
        biotorch.convert(nn.Sequential(nn.LSTM(3, 3, proj_size=2)), "fa")
    assert "0 (LSTM): proj_size > 0" in str(caught.value)


def test_what_is_not_a_module_is_an_error():
    with pytest.raises(TypeError, match=r"torch\.nn\.Module, got type"):
        biotorch.convert(nn.Linear, "fa")


@pytest.mark.parametrize("layer", [lambda **k: Linear(3, 2, **k), lambda **k: Conv2d(3, 2, 3, **k)])
def test_a_direct_layer_by_hand_asks_for_the_size_of_the_output(layer):
    with pytest.raises(ValueError, match=r"under 'dfa'.*as output_dim"):
        layer(rule="dfa")


def test_the_wrapper_with_two_different_rules_is_an_error():
    with pytest.raises(ValueError, match=r"layer_config asks for rule 'usf', but rule 'fa' is given"):
        biotorch.BioModule(mlp(), "fa", layer_config={"type": "usf"})


def test_pretrained_weights_that_do_not_exist_are_an_error_before_any_download():
    with pytest.raises(ValueError, match=r"no pretrained weights.*'le_net_cifar'"):
        biotorch.models.build("le_net_cifar", pretrained=True)


# Saved states ------------------------------------------------------------------------------------


def test_feedback_of_another_shape_in_a_loaded_state_names_layer_and_rule():
    saved = biotorch.convert(mlp(), "dfa").state_dict()
    model = biotorch.convert(mlp(), "fa")
    with pytest.raises(RuntimeError) as caught:
        model.load_state_dict(saved)
    message = str(caught.value)
    assert "0.feedback" in message
    assert "(3, 6)" in message
    assert "(8, 6)" in message
    assert "rule 'fa'" in message
    assert "options" in message


def test_a_state_without_feedback_is_not_loaded_silently():
    with pytest.raises(RuntimeError, match=r"Missing key.*feedback"):
        biotorch.convert(mlp(), "fa").load_state_dict(mlp().state_dict())


# Inputs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", TRAINING)
def test_an_integer_input_is_an_error_that_names_the_layer(rule):
    model = nn.Sequential()
    model.add_module("first", nn.Linear(6, 3))
    with pytest.raises(TypeError, match=r"first.*floating point.*int64"):
        biotorch.convert(model, rule)(torch.ones(2, 6, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"Conv2d.*uint8"):
        Conv2d(3, 2, 3, rule=rule, output_dim=2)(torch.ones(2, 3, 8, 8, dtype=torch.uint8))


# Backward passes ---------------------------------------------------------------------------------


class Features(nn.Module):
    def __init__(self):
        super().__init__()
        self.features, self.auxiliary, self.head = nn.Linear(6, 5), nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.features(x).relu())


def test_a_loss_that_goes_around_the_output_layer_is_an_error():
    model = biotorch.convert(Features(), "dfa")
    with pytest.raises(RuntimeError, match=rf"^features: .*{DIRECT}.*output="):
        model.features(batch()).sum().backward()


def test_a_head_that_was_not_named_as_an_output_is_an_error():
    model = biotorch.convert(Features(), "dfa")
    with pytest.raises(RuntimeError, match=rf"^auxiliary: .*{DIRECT}"):
        F.cross_entropy(model.auxiliary(model.features(batch())), labels()).backward()


def test_an_output_layer_that_never_runs_is_an_error():
    model = biotorch.convert(Features(), "dfa", output="auxiliary")
    with pytest.raises(RuntimeError, match=rf"^head: .*{DIRECT}"):
        F.cross_entropy(model(batch()), labels()).backward()


def test_an_output_layer_that_runs_without_gradients_is_an_error():
    model = biotorch.convert(Features(), "dfa")
    hidden = model.features(batch())
    with torch.no_grad():
        logits = model.head(hidden)
    with pytest.raises(RuntimeError, match=DIRECT):
        (F.cross_entropy(logits, labels()) + hidden.sum()).backward()


def test_direct_feedback_needs_the_batch_first_everywhere():
    class Selecting(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head = nn.Linear(6, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.head(self.first(x)[1:].relu())

    model = biotorch.convert(Selecting(), "dfa")
    x = batch().requires_grad_()
    with pytest.raises(RuntimeError, match=r"first: .*3 example.*input has 4.*batch as the first dimension"):
        model(x).sum().backward()


@pytest.mark.parametrize("rule", TRAINING)
def test_weights_changed_between_forward_and_backward_are_an_error(rule):
    model = biotorch.convert(mlp(), rule)
    loss = F.cross_entropy(model(batch()), labels())
    with torch.no_grad():
        model[2].weight.add_(1)
    with pytest.raises(RuntimeError, match="changed in place between forward and backward"):
        loss.backward()


def test_a_cut_block_called_without_its_tensor_first_is_an_error():
    model = biotorch.convert(biotorch.models.build("resnet20"), "dfa", shortcuts="cut")
    with pytest.raises(RuntimeError, match=r"layer1\.0\.conv1.*BasicBlock.*first argument"):
        model.layer1[0]([images(channels=16, size=8)])


# layer_config ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"typ": "fa"}, "unknown key of layer_config 'typ'. Did you mean 'type'"),
        ({"type": "fa", "option": {}}, "unknown key of layer_config 'option'. Did you mean 'options'"),
        ("fa", "layer_config is a mapping"),
    ],
)
@pytest.mark.parametrize(
    "build",
    [
        lambda config: fa.Linear(3, 2, layer_config=config),
        lambda config: biotorch.BioModule(mlp(), "fa", layer_config=config),
        lambda config: fa_models.le_net_mnist(layer_config=config),
    ],
    ids=["layer", "BioModule", "model"],
)
def test_a_mistake_in_layer_config_is_an_error_everywhere(build, config, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build(config)
    build({"type": "fa", "options": None})  # an empty YAML section


# Rules of the user's own -------------------------------------------------------------------------


def test_a_rule_that_gives_no_feedback_or_a_wrong_shape_is_told_at_conversion():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Wrong(biotorch.rules.FeedbackRule):
        def feedback(self, weight, state):
            return weight.T

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Missing(biotorch.rules.DirectRule):
        pass

    Wrong.name, Missing.name = "wrong", "missing"
    with pytest.raises(ValueError, match=r"'wrong' gives a B of shape \(6, 8\), but this layer needs \(8, 6\)"):
        biotorch.convert(mlp(), Wrong())
    with pytest.raises(ValueError, match=r"'missing' gives a B of shape None, but this layer needs \(3, 6\)"):
        biotorch.convert(mlp(), Missing())


def test_a_switch_is_true_or_false():
    with pytest.raises(ValueError, match="gradient_clip is true or false, not 'no'"):
        biotorch.rules.make("fa", gradient_clip="no")


def test_exceptions_travel_between_processes():
    failures = {"a": errors.Failure("defect", "broken")}
    for error in (
        errors.BrokenPointsError({}, failures, Path("runs")),
        errors.Interrupted(signal.SIGTERM),
        errors.SectionError({"lr": "too large"}),
        errors.DataError("damaged"),
    ):
        copied = pickle.loads(pickle.dumps(error))
        assert (type(copied), str(copied), vars(copied)) == (type(error), str(error), vars(error))
