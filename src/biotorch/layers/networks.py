"""Operations on all connections of a network: list, clip, isolate, tell of updates, true gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from biotorch.layers.base import FeedbackLayer
from biotorch.layers.connection import Connection
from biotorch.layers.watching import paused


def connections(model: nn.Module) -> dict[str, Connection]:
    """Every connection of the feedback layers of `model`, by the layer's dotted name.

    Where a layer has several, the parameter's name is added.
    """
    found = {}
    for name, layer in model.named_modules():
        own: Sequence[Connection] = getattr(layer, "connections", ())
        for connection in own:
            parts = [name, connection.parameter] if len(own) > 1 else [name]
            found[".".join(filter(None, parts))] = connection
    return found


def updated(model: nn.Module) -> None:
    """Tell the layers of `model` of an update of their weights that they cannot see.

    Updates are seen by themselves, whatever optimizer makes them; not those that are written through `.data` by hand,
    into flat buffers (DeepSpeed) or into sharded parameters (FSDP2). Call it once after each such step. What
    follows the update (a redraw of `brsf`, a mirror phase of `wm`, the norm under `constrain_weights`) is then done
    at the next use of B.

    Raises:
        RuntimeError: `constrain_weights` of a sharded W, of which no process can write the whole.
    """
    for name, connection in connections(model).items():
        if connection.follower is not None:
            if connection.layer.rule.constrain_weights and connection.is_sharded:
                raise RuntimeError(f"{name}: constrain_weights cannot rescale a sharded weight (FSDP2): use DDP")
            if connection.owner is connection:
                connection.follower.told = True


def feedback_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """The B of `model` that learn by gradients (`kp`, `dkp`), each once.

    For a parameter group of their own:

        feedback = list(biotorch.feedback_parameters(model))
        ours = {id(parameter) for parameter in feedback}
        rest = [parameter for parameter in model.parameters() if id(parameter) not in ours]
        optimizer = torch.optim.SGD([{"params": rest}, {"params": feedback, "lr": 0.001}], lr=0.1)
    """
    found = {id(each): each for connection in connections(model).values() for each in connection.learned}
    yield from found.values()


def clip_grad_norm_(
    model: nn.Module, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> Tensor:
    """Scale all gradients of `model` by one factor, so that those of the network have a norm of at most `max_norm`.

    As `torch.nn.utils.clip_grad_norm_`, but the norm is that over the gradients of the network itself, without those of
    a B that learns: a network under `kp` is clipped as it would be under `fa`, and W and B stay together. torch's own
    function counts B's gradients, too: the norm under `kp` is then larger by up to the square root of 2.

    Args:
        model: the network; parameters without a gradient are left out.
        max_norm: the norm that they may have.
        norm_type: p of the p-norm, also `inf`.
        error_if_nonfinite: raise where the norm is not finite.

    Returns:
        The norm before clipping, a scalar.

    Raises:
        RuntimeError: the norm is not finite, and `error_if_nonfinite`.
    """
    ours = {id(parameter) for parameter in feedback_parameters(model)}
    found = [parameter for parameter in model.parameters() if parameter.grad is not None]
    own = [parameter.grad for parameter in found if id(parameter) not in ours and parameter.grad is not None]
    with torch.no_grad():
        norm: Tensor = get_total_norm(own, norm_type, error_if_nonfinite)
        clip_grads_with_norm_(found, max_norm, norm)
    return norm


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
