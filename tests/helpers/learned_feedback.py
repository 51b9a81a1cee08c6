"""Networks whose B is a parameter, and steps of a user's optimizer on them."""

import inspect

import torch
from networks import batch, labels, mlp
from torch import nn
from torch.nn import functional as F

import biotorch
from biotorch.testing import images, loss_of

EXACT = {"rtol": 1e-9, "atol": 1e-12}
SETTINGS = {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1}


def build(kind, parameters, **settings) -> torch.optim.Optimizer:
    known = inspect.signature(kind).parameters
    return kind(list(parameters), **{k: v for k, v in {**SETTINGS, **settings}.items() if k in known})


def kp(**options) -> nn.Sequential:
    torch.manual_seed(0)
    return biotorch.convert(mlp().double(), "kp", seed=1, **options)


def backward(model, step: int = 0) -> None:
    F.cross_entropy(model(batch().double() + step), labels()).backward()


def step(model, optimizer, seeds=(0,)) -> None:
    for seed in seeds:
        optimizer.zero_grad()
        loss_of(model(images(seed=seed))).backward()
        optimizer.step()
