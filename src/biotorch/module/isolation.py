"""Run a network without leaving a trace: for measurements in the middle of training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from biotorch.layers import connections
from biotorch.layers.watching import paused


@contextlib.contextmanager
def isolated(model: nn.Module) -> Iterator[None]:
    """On leaving, buffers (batch-norm statistics) and the global random state are as they were.

    What follows earlier updates of weights is done before; whatever happens to them inside is no update. Two blocks in
    a row start from the same random state: they draw the same dropout masks.
    """
    for connection in connections(model).values():
        connection.settle(at_once=True)
    tensors = [*model.parameters(), *model.buffers()]
    devices = sorted({tensor.get_device() for tensor in tensors if tensor.is_cuda})
    before = [
        (module._buffers, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    with torch.random.fork_rng(devices=devices), paused():
        try:
            yield
        finally:
            with torch.no_grad():
                for owner, name, buffer, value in before:
                    owner[name] = buffer  # a forward may have put another tensor in its place
                    if not torch.equal(buffer, value):
                        buffer.copy_(value)
