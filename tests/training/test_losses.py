"""Class weights and ignored classes: no figure depends on how a batch is divided."""

import pytest
import torch
from torch import nn

from biotorch import data
from biotorch.training import LossConfig, Trainer, TrainingConfig, evaluate

WEIGHTS = [1.0, 2.0, 0.5, 1.0, 1.0, 1.0, 3.0, 1.0, 1.0, 50.0]
every_loss = pytest.mark.parametrize(
    "arguments", [{"weight": WEIGHTS}, {"ignore_index": 3}, {"weight": WEIGHTS, "ignore_index": 9}, {}]
)


@pytest.fixture(scope="module")
def digits():
    return data.load(data.DataConfig(dataset="digits"), seed=0)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


@every_loss
def test_the_loss_on_a_split_is_that_of_all_its_examples_at_once(digits, arguments):
    loss, model = LossConfig(name="cross_entropy", **arguments).build(), network()
    images, labels = next(iter(digits.validation.in_order(len(digits.validation))))
    expected = loss(model(images), labels).item()
    for size in (3, 7, 500):
        assert evaluate(model, digits.validation, loss, batch_size=size)["loss"] == pytest.approx(expected, rel=1e-5)


@every_loss
def test_accumulated_batches_are_one_large_batch(digits, arguments):
    def trained(batch_size, accumulate):
        config = TrainingConfig.model_validate(
            {
                "hyperparameters": {"epochs": 1, "batch_size": batch_size, "accumulate": accumulate},
                "optimizer": {"type": "SGD", "lr": 0.05},
            }
        )
        model = network()
        trainer = Trainer(model, digits, config, LossConfig(name="cross_entropy", **arguments).build(), seed=0)
        history = trainer.run()
        return model[1].weight, history[1]["train"]["loss"]

    (whole, loss), (parts, same) = trained(64, 1), trained(16, 4)
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-5)
    assert same == pytest.approx(loss, rel=1e-4)
