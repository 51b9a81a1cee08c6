"""`revert`, which turns a converted network back into an ordinary one."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from biotorch.conversion.install import remove_hooks, thaw
from biotorch.layers import FeedbackLayer, Reader, set_type

_Module = TypeVar("_Module", bound=nn.Module)

#: Attributes that conversion sets on a layer in addition to its rule.
_MARKS = ("output", "network", "label", "batch_dim", "true_gradients")


def revert(model: _Module) -> _Module:
    """Make `model` an ordinary network again, in place and with its present weights, and return it.

    Outputs stay the same to the bit; gradients become those of backpropagation. Nothing of biotorch is left in the
    network: classes, state_dict and pickles are torch's own. A network of plain layers is left as it is. To keep the
    converted network, revert `copy.deepcopy(model)`.

    Raises:
        TypeError: `model` is not a module.

    Examples:
        >>> model = biotorch.convert(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)), "fa")
        >>> type(biotorch.revert(model)[0])
        <class 'torch.nn.modules.linear.Linear'>
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"revert takes a torch.nn.Module, got {type(model).__name__}")
    remove_hooks(model)
    thaw(model)
    for module in model.modules():
        if isinstance(module, FeedbackLayer):
            module.forget_rule()
            for mark in _MARKS:
                module.__dict__.pop(mark, None)
        if isinstance(module, FeedbackLayer | Reader):
            set_type(module, module.torch_type)
    return model
