"""Tracers and transforms, which take a forward pass apart and would lose the rule without a word.

`torch.fx` keeps a feedback layer whole, as it keeps torch's own layers. `torch.export`, `torch.jit.trace` and
`torch.func` record what a layer computes and derive a gradient from that, so they are refused while the rule's gradient
is wanted. Under `torch.no_grad()` and `biotorch.true_gradients` a layer is plain PyTorch, and they work.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.fx import Proxy

from biotorch.layers.connection import Connection


def is_traced(value: object) -> bool:
    """Whether `value` stands for a tensor in a graph that torch.fx is tracing."""
    return isinstance(value, Proxy)


def as_leaf(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Add the call of `module` to the graph that torch.fx is tracing, as one node. One of the arguments is traced.

    torch.fx does so with layers whose type is defined in `torch.nn`. The traced network calls the layer itself, which
    learns by its rule.
    """
    tracer: Any = next(value for value in (*args, *kwargs.values()) if isinstance(value, Proxy)).tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(module), args, kwargs)


def require_autograd(connection: Connection, x: object = None) -> None:
    """Require that gradients, also of a layer's input `x`, will be computed by PyTorch's autograd and nothing else.

    Raises:
        RuntimeError: torch.func, torch.export, torch.jit.trace or torch.fx is at work.
    """
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            f"{connection.name}: torch.func (grad, jacrev, vmap ...) cannot go through a feedback layer, whose "
            "gradient is not the derivative of its output: call backward or torch.autograd.grad, or put `with "
            "biotorch.true_gradients(model):` around the call for the network's true gradients"
        )
    if torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None:
        raise RuntimeError(
            f"{connection.name}: an exported or traced network has lost its rule, and would train by backpropagation "
            "or not at all: export it under torch.no_grad() to deploy it, or export "
            "biotorch.revert(copy.deepcopy(model)) to train it by backpropagation"
        )
    if is_traced(x):
        raise RuntimeError(
            f"{connection.name}: torch.fx must keep this layer whole, or its rule is lost: make its class a leaf "
            "module of the tracer (for create_feature_extractor, tracer_kwargs={'leaf_modules': [...]})"
        )
