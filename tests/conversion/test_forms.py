"""The forms of a direct rule's B: a kernel for each layer, dense for one input size, or slices of one matrix."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
import torchvision
from networks import mlp, same, state
from torch import Tensor, nn

import biotorch
from biotorch import ConversionError
from biotorch.layers import connections
from biotorch.testing import LAYER_NAMES, Net, assert_all_learn, assert_close, collect, gradients, images, loss_of, net

pytestmark = pytest.mark.parametrize("rule", ["dfa"])  # the others share its forms, dkp but for `shared`


def dense(rule: str, **options) -> Net:
    return net(rule, feedback="dense", inputs=images(1), **options)


# Dense -------------------------------------------------------------------------------------------


def test_a_dense_b_has_a_row_for_every_output_and_a_column_for_every_input(rule):
    model = dense(rule)
    shapes = {name: tuple(model.get_submodule(name).feedback.shape) for name in LAYER_NAMES}
    assert shapes == {"features.0": (3, 2 * 64), "features.2": (3, 4 * 64), "features.5": (3, 54), "head": (3, 10)}


def test_a_convolution_hands_on_the_error_times_b(rule):
    model = dense(rule).double()
    h = torch.randn(5, 4, 8, 8, dtype=torch.float64, requires_grad=True)
    z = model.head(model.features[2:](h))
    e = torch.randn_like(z)
    z.backward(e)
    torch.testing.assert_close(h.grad, (e @ model.features[2].feedback).view(5, 4, 8, 8))


CONVOLUTIONS = {
    "1d": (nn.Conv1d(2, 3, 3, stride=2), (4, 2, 7)),
    "3d": (nn.Conv3d(2, 3, 2), (4, 2, 3, 4, 3)),
    "transposed": (nn.ConvTranspose2d(2, 3, 2, stride=2), (4, 2, 3, 4)),
    "reflect": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (4, 2, 4, 5)),
    "groups, same": (nn.Conv2d(2, 4, 2, padding="same", groups=2), (4, 2, 4, 5)),
    "channels last": (nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last), (4, 2, 4, 5)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_every_convolution_takes_a_dense_b(rule, kind):
    layer, size = copy.deepcopy(CONVOLUTIONS[kind])
    x = torch.randn(size)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(layer(x)[0].numel(), 3))
    biotorch.convert(model, rule, feedback="dense", inputs=x)
    if kind == "channels last":
        x = x.to(memory_format=torch.channels_last)
    x.requires_grad_()
    e = torch.randn(4, 3)
    model(x).backward(e)
    torch.testing.assert_close(x.grad, (e @ layer.feedback).view(size))


def test_an_output_with_positions_is_projected_as_a_whole(rule):
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Conv2d(3, 2, 1))
    x = torch.randn(2, 2, 4, 4, requires_grad=True)
    biotorch.convert(model, rule, feedback="dense", inputs=x)
    e = torch.randn(2, 2, 2, 2)
    model(x).backward(e)
    torch.testing.assert_close(x.grad, (e.flatten(1) @ model[0].feedback).view(x.shape))
    assert model[2].feedback.shape == (8, 3 * 2 * 2)
    with pytest.raises(RuntimeError, match=r"^2: feedback='dense' was made for an output of 8 values.*inputs="):
        model(torch.randn(2, 2, 5, 5, requires_grad=True)).sum().backward()
    with pytest.raises(biotorch.ConversionError, match="inputs="):
        biotorch.convert(nn.Sequential(nn.Linear(3, 2), nn.Conv2d(2, 2, 1)), rule, feedback="dense")


def test_a_dense_network_learns_and_transports_nothing(rule):
    model = dense(rule)
    assert_all_learn(gradients(model, images()), model)
    assert biotorch.audit(model, images(2)).leak == 0.0


def test_another_input_size_is_an_error_that_names_layer_and_cure(rule):
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    biotorch.convert(model, rule, feedback="dense", inputs=torch.randn(1, 2, 4, 4))
    x = torch.randn(2, 2, 5, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"^0: .*feedback='dense' was made for inputs of 32.*40 \(2x5x4\).*inputs="):
        model(x).sum().backward()


def test_the_example_batch_may_be_a_tuple_or_a_mapping(rule):
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv1d(2, 3, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return self.head(self.conv(x * scale).mean(2))

    x = torch.randn(2, 2, 7)
    for inputs in ((x, torch.ones(1)), {"scale": torch.ones(1), "x": x}):
        assert biotorch.convert(Named(), rule, feedback="dense", inputs=inputs).conv.feedback.shape == (2, 14)


class Untouched:
    """That a conversion which fails leaves types, modes, state, hooks and random state as they were."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.before = model, self.now(model)

    def now(self, model: nn.Module) -> tuple:
        modules = [(type(m), m.training, len(m._forward_pre_hooks), len(m._forward_hooks)) for m in model.modules()]
        return modules, state(model)

    def check(self) -> None:
        modules, tensors = self.now(self.model)
        assert modules == self.before[0]
        assert same(tensors, self.before[1])


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        (None, ConversionError, "inputs=batch"),
        (torch.randn(2, 5, 8, 8), ConversionError, "channels"),
    ],
    ids=["missing", "of another size"],
)
def test_after_an_error_the_network_is_unchanged(rule, inputs, error, message):
    model = Net()
    model.features[0].eval()
    untouched = Untouched(model)
    with pytest.raises(error, match=message):
        biotorch.convert(model, rule, feedback="dense", inputs=inputs)
    untouched.check()


def test_a_layer_that_the_example_batch_does_not_reach_is_an_error(rule):
    model = Net()
    model.spare = nn.Conv2d(2, 2, 3)
    model.head = model._modules.pop("head")
    untouched = Untouched(model)
    with pytest.raises(ConversionError, match="the forward of spare did not run"):
        biotorch.convert(model, rule, feedback="dense", inputs=images(1))
    untouched.check()


def test_the_example_batch_changes_modes_and_statistics_of_nothing(rule):
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Dropout(), nn.Flatten(), nn.Linear(108, 3))
    model[2].eval()
    before, random = state(model), torch.get_rng_state()
    biotorch.convert(model, rule, feedback="dense", inputs=images(4))
    assert [m.training for m in model] == [True, True, False, True, True]
    assert all(torch.equal(state(model)[name], value) for name, value in before.items())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_layer_by_hand_has_no_network_to_take_such_a_form_from(rule):
    for options in ({"feedback": "dense"}, {"feedback": "shared"}, {"points": "layer1"}):
        with pytest.raises(ValueError, match=r"needs a whole network: use biotorch\.convert"):
            biotorch.layers.Linear(3, 2, rule=biotorch.rules.make(rule, **options), output_dim=2)


def test_an_unknown_form_names_the_nearest_one(rule):
    with pytest.raises(ConversionError, match=r"unknown feedback 'shard'.*'shared'"):
        biotorch.convert(mlp(), rule, feedback="shard")


# Shared ------------------------------------------------------------------------------------------


class Attentive(nn.Module):
    """Convolutions, attention over positions, a recurrent cell, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, stride=2)
        self.mixed = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.cell = nn.GRUCell(6, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mixed(self.conv(x).tanh()).tanh().flatten(2).transpose(1, 2)
        x, _ = self.attention(x, x, x, need_weights=False)
        return self.head(self.cell(x.mean(1), x.amax(1)[:, :5]))


def attentive(rule: str, **options) -> Attentive:
    torch.manual_seed(0)
    return biotorch.convert(Attentive().double(), rule, seed=1, **options)


def test_one_matrix_on_the_output_layer_is_all_there_is(rule):
    model = net(rule, feedback="shared")
    assert [name for name, _ in model.named_buffers()] == ["head.shared_feedback"]
    widest = max(math.prod(each.feedback_shape[1:]) for each in connections(model).values())
    assert model.head.shared_feedback.shape == (3, widest) == (3, 54)


@pytest.mark.parametrize("init", ["xavier", "kaiming", "normal"])
def test_every_b_is_the_first_columns_at_the_scale_of_the_initializer(rule, init):
    shared, own = attentive(rule, feedback="shared", init=init), attentive(rule, init=init)
    matrix = shared.head.shared_feedback
    for name, connection in connections(shared).items():
        feedback = connection.feedback
        assert feedback.shape == connections(own)[name].feedback.shape == connection.feedback_shape
        columns = feedback.flatten(1)
        ratio = columns / matrix[:, : columns.shape[1]]
        torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio))
        fans = nn.init._calculate_fan_in_and_fan_out(feedback)
        wanted = {"xavier": math.sqrt(2 / sum(fans)), "kaiming": 1 / math.sqrt(3 * fans[0]), "normal": 1.0}[init]
        assert ratio[0, 0].item() == pytest.approx(wanted)


@pytest.mark.parametrize("init", ["xavier", "normal"])
def test_the_matrix_has_variance_one(rule, init):
    model = biotorch.convert(nn.Sequential(nn.Linear(400, 9), nn.Linear(9, 200)), rule, feedback="shared", init=init)
    matrix = model[1].shared_feedback
    assert matrix.std().item() == pytest.approx(1, rel=0.02)
    assert (matrix.abs().max() <= 3**0.5) == (init == "xavier")


def test_gradients_are_those_of_a_network_with_these_kernels(rule):
    shared, own = attentive(rule, feedback="shared"), attentive(rule)
    for name, connection in connections(own).items():
        connection.feedback.copy_(connections(shared)[name].feedback)
    found, x = [], images().double()
    for model in (shared, own):
        inputs = x.clone().requires_grad_()
        loss_of(model(inputs)).backward()
        found.append({**collect(model), "input": inputs.grad})
    assert all(gradient.any() for gradient in found[0].values())
    assert_close(*found)


def test_clipping_and_cuts_work_on_slices_too(rule):
    torch.manual_seed(0)
    build = lambda: torchvision.models.resnet.ResNet(torchvision.models.resnet.BasicBlock, [1] * 4, 5)  # noqa: E731
    found = []
    options = {"shortcuts": "cut", "gradient_clip": True, "seed": 1}
    models = [build().double().eval()]
    models.append(copy.deepcopy(models[0]))
    biotorch.convert(models[0], rule, feedback="shared", **options)
    biotorch.convert(models[1], rule, **options)
    for name, connection in connections(models[1]).items():
        connection.feedback.copy_(connections(models[0])[name].feedback)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    for model in models:
        (1e3 * model(x)).sum().backward()
        found.append(collect(model))
    assert_close(*found)


def test_several_outputs_project_by_their_own_rows(rule):
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 3), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.trunk(x).tanh()
            return self.a(h), self.b(h)

    model = biotorch.convert(Heads(), rule, output=["a", "b"], feedback="shared")
    assert [name for name, _ in model.named_buffers()] == ["a.shared_feedback"]
    x, e_a, e_b = torch.randn(4, 6, requires_grad=True), torch.randn(4, 3), torch.randn(4, 2)
    a, b = model(x)
    ((a * e_a).sum() + (b * e_b).sum()).backward()
    feedback = connections(model)["trunk"].feedback
    assert feedback.shape == (5, 6)
    torch.testing.assert_close(x.grad, e_a @ feedback[:3] + e_b @ feedback[3:])


def test_a_state_a_copy_and_a_pickle_hold_the_matrix(rule):
    model, other = net(rule, feedback="shared"), Net()
    biotorch.convert(other, rule, feedback="shared", seed=8)
    assert not torch.equal(model.head.shared_feedback, other.head.shared_feedback)
    other.load_state_dict(model.state_dict())
    expected = gradients(model, images())
    for restored in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert same(restored.state_dict(), model.state_dict())
        assert restored.features[0].connections[0].holder is restored.head
        assert_close(gradients(restored, images()), expected, rtol=0, atol=0)
    clone = copy.deepcopy(model)
    clone.head.shared_feedback.zero_()
    assert_close(gradients(model, images()), expected, rtol=0, atol=0)


def test_a_matrix_of_another_shape_in_a_state_is_named(rule):
    saved = net(rule, feedback="shared").state_dict()
    saved["head.shared_feedback"] = torch.zeros(3, 20)
    with pytest.raises(RuntimeError, match=r"head\.shared_feedback: the loaded .* has shape \(3, 20\).*\(3, 54\)"):
        net(rule, feedback="shared").load_state_dict(saved)


def test_the_type_of_the_network_is_that_of_the_matrix(rule):
    model, single = net(rule, feedback="shared").double(), net(rule, feedback="shared")
    assert connections(model)["features.0"].feedback.dtype == torch.float64
    found = {name: g.float() for name, g in gradients(model, images().double()).items()}
    assert_close(found, gradients(single, images()), rtol=1e-3, atol=1e-4)
    assert gradients(model.to(torch.bfloat16), images().bfloat16())["features.0.weight"].dtype == torch.bfloat16


def test_a_shared_network_transports_nothing_and_reverts(rule):
    model = net(rule, feedback="shared")
    assert biotorch.audit(model, images(2)).leak == 0.0
    report = biotorch.summary(model)
    assert report.rows[0].feedback == ((3, 2, 3, 3),)
    assert report.feedback_bytes == 3 * 54 * 4
    biotorch.revert(model)
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
    assert [type(m) for m in model.modules()] == [type(m) for m in Net().modules()]


def test_one_matrix_needs_less_memory_than_a_kernel_for_each_layer(rule):
    def ratio(feedback: str) -> float:
        with torch.device("meta"):
            model = torchvision.models.resnet18()
        return biotorch.summary(biotorch.convert(model, rule, feedback=feedback)).feedback_ratio

    assert 2.0 < ratio("kernel") <= 2.8
    assert 0.3 < ratio("shared") < 0.5


@pytest.mark.parametrize("part", ["features.0", "head"])
def test_converting_a_part_again_is_refused(rule, part):
    model = net(rule, feedback="shared")
    before = state(model)
    again = biotorch.rules.make(rule, feedback="shared")
    choice = again if part == "features.0" else "backpropagation"
    with pytest.raises(ConversionError, match="keeps a slice of an earlier shared feedback: convert all"):
        biotorch.convert(model, {part: choice})
    assert same(state(model), before)
    assert biotorch.convert(model, rule, feedback="shared", seed=4).head.shared_feedback.shape == (3, 54)
    biotorch.convert(model, "fa")
    assert "shared_feedback" not in dict(model.head.named_buffers())


def test_layers_converted_later_get_a_matrix_that_is_wide_enough(rule):
    shared = biotorch.rules.make(rule, feedback="shared")
    model = biotorch.convert(mlp(), {"0": shared, "2": "fa", "4": "backpropagation"})  # a matrix of 6 columns
    biotorch.convert(model, {"0": "fa"})
    biotorch.convert(model, {"2": shared})  # needs 8
    model(torch.randn(2, 6)).sum().backward()


@pytest.mark.parametrize("change", [lambda layer: biotorch.convert(layer, "fa"), biotorch.revert])
def test_a_network_whose_output_layer_was_changed_alone_says_so(rule, change):
    model = net(rule, feedback="shared")
    change(model.head)
    with pytest.raises(RuntimeError, match=r"features\.0: the shared feedback is gone"):
        model(images())
