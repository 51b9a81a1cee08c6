"""Trainings on adversarial examples of a few digits."""

import runs
import torch
from torch import nn

import biotorch
from biotorch.training import TrainingConfig

STRONG = {"epsilon": 0.1, "steps": 3}


def config(adversarial=None, epochs=1, batch_size=32, accumulate=1, **training) -> TrainingConfig:
    hyperparameters = {"epochs": epochs, "batch_size": batch_size, "accumulate": accumulate}
    optimizer = {"type": "SGD", "lr": 0.05, "momentum": 0.9}
    values = {"hyperparameters": hyperparameters, "optimizer": optimizer, "adversarial": adversarial, **training}
    return TrainingConfig.model_validate(values)


def network(rule="backpropagation") -> nn.Module:
    """With batch statistics and dropout."""
    torch.manual_seed(1)
    return biotorch.convert(runs.small(), rule, copy_weights=False, seed=1)
