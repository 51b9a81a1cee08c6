"""What is known of a network before it takes memory: wrong arguments, sizes, and a top_k that nothing can miss."""

import pytest
import runs
import torch
from config_cases import BASE, refused, write

from biotorch import _memory, data, models
from biotorch.errors import ConfigError, NotEnoughMemoryError
from biotorch.experiment import read
from biotorch.experiment.planning import require_memory
from biotorch.training import evaluate
from biotorch.training.optimizers import OptimizerConfig

WRONG = [
    ("mlp", "{dephth: 3}", "unknown argument of 'mlp' 'dephth'. Did you mean 'depth'"),
    ("mlp", "{width: -1}", "positive"),
    ("mlp", "{width: 1.5}", "a whole number"), ("mlp", "{batch_norm: no}", "is true or false, not 'no'"),
    ("mlp", "{width: 1000000000}", "too large"), ("mlp", "{depth: 100000000}", "at most 10,000"),
    ("mlp", "{activation: relo}", "unknown activation"), ("mlp", "{width: 10000000000000000000}", "at most"),
    ("le_net_mnist", "{width: 3}", "unknown argument"), ("resnet18", "{norm_layer: 3}", "not callable"),
    ("resnet18", "{replace_stride_with_dilation: 5}", "cannot be built with these arguments"),
    ("vit_b_16", "{image_size: 33}", "patch size"), ("char_transformer", "{heads: 0}", "cannot be built"),
    ("char_transformer", "{width: 1000000000}", "overflowed"), ("char_transformer", "{depth: 1000000000}", "too large"),
]  # fmt: skip


@pytest.mark.parametrize(("architecture", "arguments", "told"), WRONG)
def test_wrong_arguments_of_a_network_are_told_when_the_configuration_is_read(tmp_path, architecture, arguments, told):
    path = write(tmp_path, BASE.replace("  architecture: le_net_mnist", f"  architecture: {architecture}"))
    (problem,) = refused(path, f"model.arguments={arguments}")
    assert problem.startswith(f"override model.arguments={arguments}: model.arguments")
    assert told in problem


def test_wrong_arguments_are_told_for_every_point_of_a_sweep_and_right_ones_are_not(tmp_path):
    text = BASE.replace("le_net_mnist", "mlp") + "sweep: {model.arguments.width: [8, -1, [4, 5], 0]}\n"
    problems = refused(write(tmp_path, text))
    assert [line.count("base.yaml:17: model.arguments") for line in problems] == [1, 1]
    assert "is -1)" in problems[0]
    text = BASE.replace("le_net_mnist", "vit_b_16") + "sweep: {model.arguments.attention_dropout: [0, 0.1]}\n"
    assert len(read(write(tmp_path, text)).points) == 2


def test_a_sketch_has_the_shapes_of_the_network_and_no_memory():
    sketch, built = (make("mlp", 7, input_shape=(1, 4, 4), width=5) for make in (models.sketch, models.build))
    assert [p.shape for p in sketch.parameters()] == [p.shape for p in built.parameters()]
    assert {p.device.type for p in sketch.parameters()} == {"meta"}
    assert models.sketch("regnet_y_400mf") is None  # it computes its widths with tensors


@pytest.mark.parametrize(("architecture", "rule"), [("mlp", "fa"), ("resnet18", "brsf")])
def test_an_estimate_leaves_the_random_numbers_of_the_run_alone(tmp_path, architecture, rule):
    before = torch.get_rng_state()
    overrides = (f"model.architecture={architecture}", f"model.mode.type={rule}")
    require_memory(runs.quick(tmp_path, *overrides).config, 10, (3, 32, 32))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("section", "numbers"),
    [({"type": "SGD"}, 0), ({"type": "SGD", "momentum": 0.9}, 1), ({"type": "Adam"}, 2)],
)
def test_an_optimizer_says_how_much_it_keeps_per_weight(section, numbers):
    assert OptimizerConfig(lr=0.1, **section).state_per_weight == numbers


#: Bytes of a network of 64, 8 and 10 units. Its training with Adam keeps W and B, both of the best epoch, too,
#: gradients and two numbers per weight: 7 times as much, and 5 times under dfa, whose B is not counted.
SIZE = 4 * (64 * 8 + 8 + 8 * 10 + 10)
ADAM = ("training.optimizer={type: Adam, lr: 0.01}", "training.hyperparameters.batch_size=8")


@pytest.mark.parametrize(
    ("overrides", "limit", "told"),
    [
        (["model.mode={type: fa}", *ADAM], 7 * SIZE, "'mlp' with model.arguments"),
        (["model.mode={type: dfa}", *ADAM], 5 * SIZE, "'mlp' with model.arguments"),
        (["training.hyperparameters.batch_size=500"], 500 * 4 * (64 + 8 + 8 + 10), "batch_size 500: a batch"),
    ],
)
def test_what_exceeds_the_memory_is_refused_before_it_is_taken_and_what_just_fits_is_not(
    tmp_path, monkeypatch, overrides, limit, told
):
    network = ["model.architecture=mlp", "model.arguments={width: 8, depth: 1}", "data.target_size=null", *overrides]
    monkeypatch.setattr(_memory, "available", lambda: limit - 1)
    with pytest.raises(NotEnoughMemoryError, match=told):
        runs.finish(tmp_path, *network)
    assert not (tmp_path / "quick" / "config.yaml").exists()
    monkeypatch.setattr(_memory, "available", lambda: limit)
    assert runs.finish(tmp_path, *network)["validation"]


def test_more_guesses_than_outputs_are_refused_and_never_score_an_error_of_zero(tmp_path):
    with pytest.raises(ConfigError, match=r"training\.metrics\.top_k: 1000 of 10 outputs"):
        runs.finish(tmp_path, "training.metrics.top_k=1000")
    assert not (tmp_path / "quick" / "config.yaml").exists()
    model, split = models.build("mlp", 10, input_shape=(1, 8, 8)), data.load(data.DataConfig(dataset="digits"), 0).test
    with pytest.raises(ConfigError, match="11 of 10 outputs"):
        evaluate(model, split, torch.nn.CrossEntropyLoss(), 11)
    assert evaluate(model, split, torch.nn.CrossEntropyLoss(), 10)["top_10_error"] == 0
