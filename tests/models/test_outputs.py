"""Outputs that are not one tensor per image: per token, in named tuples, mappings and objects, with auxiliary heads."""

import collections
import dataclasses
import functools
import math
from types import SimpleNamespace

import pytest
import runs
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import biotorch
from biotorch import data
from biotorch.experiment import ConfigError
from biotorch.models.outputs import main_output
from biotorch.training import LossConfig, Trainer, TrainingConfig, evaluate, training_loss
from biotorch.training.evaluation import Tally, loss_size

Heads = collections.namedtuple("Heads", ["logits", "aux_logits2", "aux_logits1"])
CLASSES, LENGTH = 4, 6


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    aux_logits: torch.Tensor | None = None
    hidden_states: object = None


def tokens(n=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(n, LENGTH, CLASSES, generator=generator)
    return outputs, torch.randint(CLASSES, (n, LENGTH), generator=generator)


# Per token -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [{}, {"weight": [1.0, 2.0, 0.5, 10.0]}, {"ignore_index": 2}, {"weight": [1.0, 2, 3, 4], "ignore_index": 0}],
)
def test_the_loss_per_token_is_the_mean_by_hand(arguments):
    loss, (outputs, labels) = LossConfig(**arguments).build(), tokens()
    weights = arguments.get("weight", [1.0] * CLASSES)
    total, size = 0.0, 0.0
    for row, wanted in zip(outputs.tolist(), labels.tolist(), strict=True):
        for scores, label in zip(row, wanted, strict=True):
            if label != arguments.get("ignore_index"):
                total -= weights[label] * (scores[label] - math.log(sum(map(math.exp, scores))))
                size += weights[label]
    assert loss(outputs, labels).item() == pytest.approx(total / size, rel=1e-5)
    assert loss.size(labels) == pytest.approx(size)
    parts = [(loss(outputs[part], labels[part]).item(), loss.size(labels[part])) for part in ([0], [1, 2])]
    assert sum(mean * size for mean, size in parts) / size == pytest.approx(total / size, rel=1e-5)


@pytest.mark.parametrize("name", ["mse", "bce_with_logits", "multi_margin_loss"])
def test_other_losses_per_token_are_those_of_all_tokens_in_a_row(name):
    loss, (outputs, labels) = LossConfig(name=name).build(), tokens()
    assert torch.equal(loss(outputs, labels), loss(outputs.flatten(0, 1), labels.flatten()))
    assert loss.size(labels) == labels.numel()


def tally_of(labels, top_k):
    return Tally.of(SimpleNamespace(labels=labels, per_token=True), top_k, (), torch.device("cpu"))


def test_any_function_divides_by_the_number_of_labels():
    assert loss_size(F.cross_entropy)(torch.zeros(3, LENGTH, dtype=torch.int64)) == 3 * LENGTH
    assert loss_size(F.cross_entropy)(torch.zeros(3)) == 3


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_error_and_perplexity_per_token_are_those_by_hand(smoothing):
    outputs, labels = tokens()
    loss, tally = LossConfig(label_smoothing=smoothing).build(), tally_of(labels, top_k=2)
    assert tally.here() == {}
    for part in (slice(0, 1), slice(1, 3)):
        tally.add(loss(outputs[part], labels[part]), loss.size(labels[part]), outputs[part], labels[part])
    wrong = missed = surprise = 0.0
    for row, wanted in zip(outputs.tolist(), labels.tolist(), strict=True):
        for scores, label in zip(row, wanted, strict=True):
            rank = sorted(scores, reverse=True).index(scores[label])
            wrong, missed = wrong + (rank > 0), missed + (rank > 1)
            surprise += math.log(sum(map(math.exp, scores))) - scores[label]
    count = labels.numel()
    assert tally.here() == pytest.approx(
        {
            "loss": loss(outputs, labels).item(),
            "error": 100 * wrong / count,
            "top_2_error": 100 * missed / count,
            "perplexity": math.exp(surprise / count),
        },
        rel=1e-5,
    )


def test_a_perplexity_beyond_all_numbers_is_infinite():
    outputs, labels = torch.tensor([[[1e6, 0.0]]]), torch.tensor([[1]])
    tally = tally_of(labels, top_k=1)
    tally.add(F.cross_entropy(outputs.flatten(0, 1), labels.flatten()), 1, outputs, labels)
    assert tally.here()["perplexity"] == math.inf


def test_images_have_no_perplexity():
    digits = data.load(data.DataConfig(dataset="digits"), seed=0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert evaluate(model, digits.test, LossConfig().build()).keys() == {"loss", "error"}


# Main and auxiliary outputs ------------------------------------------------------------------------


def test_the_main_output_is_found_in_whatever_holds_it():
    logits, labels = torch.randn(3, CLASSES), torch.arange(3)
    alone = [
        logits,
        Output(logits),
        {"logits": logits},
        collections.OrderedDict(logits=logits, past_key_values=[1]),
        Heads(logits, None, None),
    ]
    for outputs in alone:
        assert main_output(outputs) is logits
        assert torch.equal(training_loss(F.cross_entropy, outputs, labels), F.cross_entropy(logits, labels))


def test_auxiliary_heads_add_three_tenths_of_their_losses():
    logits, second, first = torch.randn(3, 5, CLASSES)
    labels = torch.arange(5) % CLASSES
    losses = [F.cross_entropy(each, labels).item() for each in (logits, second, first)]
    both, one = losses[0] + 0.3 * (losses[1] + losses[2]), losses[0] + 0.3 * losses[1]
    for outputs, expected in (
        (Heads(logits, second, first), both),
        ({"aux_logits1": first, "logits": logits, "aux_logits2": second}, both),
        (Output(logits, second), one),
        (torchvision.models.InceptionOutputs(logits, second), one),
        (torchvision.models.GoogLeNetOutputs(logits, second, first), both),
    ):
        assert main_output(outputs) is logits
        assert training_loss(F.cross_entropy, outputs, labels).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "outputs", [(torch.zeros(2, 3), torch.zeros(2, 3)), [torch.zeros(2, 3)], {"out": torch.zeros(2, 3)}, None,
                {"logits": [1]}, 3.0, collections.namedtuple("Pair", "a b")(1, 2)],
)  # fmt: skip
def test_anything_else_is_told_with_the_cure(outputs):
    kind = type(outputs).__name__
    for find in (main_output, lambda each: training_loss(F.cross_entropy, each, torch.zeros(2))):
        with pytest.raises(TypeError, match=rf"returns a {kind}, but .*wrap the network in a module"):
            find(outputs)


class WithHeads(nn.Module):
    """Named logits in training, a tensor else, as torchvision's networks; `wrapped`: a mapping always."""

    def __init__(self, wrapped=False):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.auxiliary = nn.Linear(64, 8), nn.Linear(8, 10), nn.Linear(8, 10)
        self.wrapped = wrapped

    def forward(self, images):
        hidden = self.body(images.flatten(1)).relu()
        logits = self.head(hidden)
        if self.wrapped:
            return {"logits": logits, "aux_logits": self.auxiliary(hidden) if self.training else None}
        return Heads(logits, self.auxiliary(hidden), None) if self.training else logits


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_network_with_auxiliary_heads_is_trained_on_all_and_measured_on_its_main_one(wrapped):
    digits = data.load(data.DataConfig(dataset="digits", validation_size=1400), seed=0)
    config = TrainingConfig.model_validate(
        {
            "hyperparameters": {"epochs": 1, "batch_size": 64, "accumulate": 1},
            "optimizer": {"type": "SGD", "lr": 0.1},
            "metrics": {"gradient_alignment": True},
        }
    )
    model = biotorch.convert(WithHeads(wrapped), "backpropagation")
    trainer = Trainer(model, digits, config, LossConfig().build(), seed=0)
    order = trainer.updates_of(1)
    history = trainer.run()
    reference, total = WithHeads(), 0.0
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    for images, labels in digits.train.batches(order):
        outputs = reference(images)
        value = F.cross_entropy(outputs.logits, labels) + 0.3 * F.cross_entropy(outputs.aux_logits2, labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        total += value.item() * len(labels)
    for mine, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert history[1]["train"]["loss"] == pytest.approx(total / len(digits.train), rel=1e-5)
    expected = evaluate(reference, digits.validation, F.cross_entropy)
    assert history[1]["validation"] == pytest.approx(expected, rel=1e-5)


class Pair(nn.Module):
    """A pair in training, a tensor else."""

    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Linear(1024, num_classes)

    def forward(self, images):
        logits = self.head(images.flatten(1))
        return (logits, logits) if self.training else logits


def test_outputs_in_training_are_looked_at_before_anything_happens(tmp_path, monkeypatch):
    monkeypatch.setitem(runs.models.registry.OWN, "pair", Pair)
    with pytest.raises(ConfigError, match=r"model\.architecture 'pair' cannot be trained: the network returns a tuple"):
        runs.finish(tmp_path, "model.architecture=pair")
    assert not (tmp_path / "quick" / "config.yaml").exists()


def test_gradient_alignment_takes_the_auxiliary_heads_along():
    digits = data.load(data.DataConfig(dataset="digits"), seed=0)
    model = biotorch.convert(WithHeads(), "backpropagation")
    loss = functools.partial(training_loss, LossConfig().build())
    found = biotorch.metrics.gradient_alignment(model, loss, *next(digits.train.in_order(32)))
    assert found.keys() == {"body", "head", "auxiliary"}
    assert max(found.values()) == 0
