"""Ordinary backpropagation through a converted network, for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

from biotorch.layers import FeedbackLayer


@contextlib.contextmanager
def true_gradients(model: nn.Module) -> Iterator[None]:
    """Inside, every forward of `model` is plain PyTorch: its gradients are those of the network itself.

    Decided in the forward pass; the backward may run later, on any thread. For attacks, gradient
    alignment and second derivatives. May be nested. It switches the model, not the thread: another
    thread's forward of the same model is affected too.
    """
    layers = [module for module in model.modules() if isinstance(module, FeedbackLayer)]
    before = [layer.true_gradients for layer in layers]
    for layer in layers:
        layer.true_gradients = True
    try:
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.true_gradients = value
