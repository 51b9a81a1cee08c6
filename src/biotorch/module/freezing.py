"""Freezing what a rule that trains the output layer alone leaves as it is."""

from __future__ import annotations

from collections.abc import Container

from torch import nn

from biotorch.layers import FeedbackLayer

#: Where a module keeps the names of its parameters that were frozen.
_FROZEN = "biotorch_frozen"


def freeze_hidden(model: nn.Module, outputs: Container[int]) -> None:
    """Where a rule asks for it: no gradient but for `outputs` (ids) and for the layers of other rules."""
    layers = [module for module in model.modules() if isinstance(module, FeedbackLayer)]
    if not any(layer.rule.trains_output_only for layer in layers):
        return
    trained = {
        id(parameter)
        for layer in layers
        if id(layer) in outputs or not layer.rule.trains_output_only
        for parameter in layer.parameters()
    }
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.requires_grad and id(parameter) not in trained:
                parameter.requires_grad_(False)
                parameter.grad = None
                module.__dict__.setdefault(_FROZEN, []).append(name)


def thaw(model: nn.Module) -> None:
    """Take back what `freeze_hidden` did."""
    for module in model.modules():
        for name in module.__dict__.pop(_FROZEN, []):
            module.get_parameter(name).requires_grad_(True)
