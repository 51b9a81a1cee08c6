"""Operations on a whole network: list its connections, clip, isolate, report updates, use true gradients."""

from __future__ import annotations

import contextlib
import functools
import random
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from biotorch.kernel.functions import Feedback
from biotorch.kernel.projection import Operation
from biotorch.layers.base import FeedbackLayer
from biotorch.layers.connection import Connection
from biotorch.layers.watching import paused


def connections(model: nn.Module) -> dict[str, Connection]:
    """Every connection of the feedback layers of `model`, by the layer's dotted name.

    If a layer has several connections, the name of the parameter is added.

    Examples:
        >>> model = biotorch.convert(nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.LSTM(6, 3)), "fa")
        >>> list(biotorch.layers.connections(model))
        ['0', '2.weight_ih_l0', '2.weight_hh_l0']
    """
    found = {}
    for name, layer in model.named_modules():
        own: Sequence[Connection] = getattr(layer, "connections", ())
        for connection in own:
            parts = [name, connection.parameter] if len(own) > 1 else [name]
            found[".".join(filter(None, parts))] = connection
    return found


def updated(model: nn.Module) -> None:
    """Report an update of the weights of `model` that its layers cannot see.

    Layers see the updates of any optimizer on their own. They cannot see updates that are written through `.data` by
    hand, into flat buffers (DeepSpeed) or into sharded parameters (FSDP2). Call this function once after each such
    step. The rule then reacts to the update (redraw of `brsf`, mirror phase of `wm`, norm under `constrain_weights`)
    at the next use of B.

    Raises:
        RuntimeError: `constrain_weights` is on and W is sharded, so that no process can rescale the whole W.

    Examples:
        >>> model = biotorch.convert(nn.Linear(8, 3), "brsf")  # draws a new B after every update
        >>> before = model.feedback.clone()
        >>> model.weight.data += 1  # written past autograd, so the layer cannot see it
        >>> biotorch.updated(model)
        >>> torch.equal(model.feedback, before)
        False
    """
    for name, connection in connections(model).items():
        if connection.follower is not None:
            if connection.layer.rule.constrain_weights and connection.is_sharded:
                raise RuntimeError(f"{name}: constrain_weights cannot rescale a sharded weight (FSDP2): use DDP")
            if connection.owner is connection:
                connection.follower.told = True


def feedback_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """The feedback weights B of `model` that learn from gradients (`kp`, `dkp`), each once.

    Use it to give them a parameter group of their own:

        feedback = list(biotorch.feedback_parameters(model))
        ours = {id(parameter) for parameter in feedback}
        rest = [parameter for parameter in model.parameters() if id(parameter) not in ours]
        optimizer = torch.optim.SGD([{"params": rest}, {"params": feedback, "lr": 0.001}], lr=0.1)

    Examples:
        >>> model = biotorch.convert(nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)), "kp")
        >>> [tuple(each.shape) for each in biotorch.feedback_parameters(model)]
        [(6, 8), (3, 6)]
    """
    found = {id(each): each for connection in connections(model).values() for each in connection.learned}
    yield from found.values()


def clip_grad_norm_(
    model: nn.Module, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> Tensor:
    """Clip the gradients of `model` by one factor, with a norm that leaves out the gradients of B.

    This differs from `torch.nn.utils.clip_grad_norm_` in the norm, which is taken over the gradients of the network
    itself. A network under `kp` is then clipped as under `fa`, and W and B get the same factor. torch's
    function also counts the gradients of a B that learns, so that the norm under `kp` is larger by up to sqrt(2).

    Args:
        model: the network; parameters without a gradient are left out.
        max_norm: the largest norm allowed for the gradients of the network itself.
        norm_type: p of the p-norm; may be `inf`.
        error_if_nonfinite: whether to raise if the norm is not finite.

    Returns:
        The norm before clipping, a scalar.

    Raises:
        RuntimeError: the norm is not finite and `error_if_nonfinite` is true.

    Examples:
        >>> model = biotorch.convert(nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)), "kp")
        >>> model(torch.randn(4, 8)).square().sum().backward()
        >>> before = biotorch.clip_grad_norm_(model, max_norm=1.0)
        >>> round(biotorch.clip_grad_norm_(model, max_norm=1.0).item(), 3)
        1.0
    """
    ours = {id(parameter) for parameter in feedback_parameters(model)}
    found = [parameter for parameter in model.parameters() if parameter.grad is not None]
    own = [parameter.grad for parameter in found if id(parameter) not in ours and parameter.grad is not None]
    with torch.no_grad():
        norm: Tensor = get_total_norm(own, norm_type, error_if_nonfinite)
        clip_grads_with_norm_(found, max_norm, norm)
    return norm


@contextlib.contextmanager
def isolated(model: nn.Module, *, attributes: bool = False) -> Iterator[None]:
    """Restore buffers (batch-norm statistics) and the random states at the end of the `with` block.

    Earlier updates of the weights are settled first. Changes of weights inside the block do not count as updates. Two
    blocks in a row start from the same random states of torch, Python and NumPy, so they draw the same dropout masks.

    Args:
        model: the network.
        attributes: whether to restore the attributes of modules (caches, counters), too, as if nothing had run.
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
    modules = model.modules() if attributes else ()
    kept = [(vars(module), _shallow(vars(module))) for module in modules]
    python, numpy = random.getstate(), sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy is not None else None
    with torch.random.fork_rng(devices=devices), paused():
        try:
            yield
        finally:
            random.setstate(python)
            if numpy is not None:
                numpy.random.set_state(numpy_state)
            for own, values in kept:
                _restore(own, values)
            with torch.no_grad():
                for owner, name, buffer, value in before:
                    owner[name] = buffer  # a forward pass may have replaced the tensor
                    if not torch.equal(buffer, value):
                        buffer.copy_(value)


def _shallow(attributes: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The attributes of a module, with copies of the containers in which it may keep something from pass to pass."""
    return {
        name: (value, value.copy() if type(value) in (dict, list, set) else None)
        for name, value in attributes.items()
        if not name.startswith("_")
    }


def _parts(container: Any) -> list[Any]:
    return [*container, *(container.values() if isinstance(container, dict) else ())]


def _restore(attributes: dict[str, Any], values: dict[str, tuple[Any, Any]]) -> None:
    for name in [each for each in attributes if not each.startswith("_") and each not in values]:
        del attributes[name]
    for name, (value, contents) in values.items():
        if contents is not None and list(map(id, _parts(value))) != list(map(id, _parts(contents))):
            value.clear()
            (value.extend if isinstance(value, list) else value.update)(contents)
        attributes[name] = value


@contextlib.contextmanager
def true_gradients(model: nn.Module) -> Iterator[None]:
    """Make every forward pass of `model` inside the `with` block plain PyTorch, with the network's true gradients.

    It is used for attacks, gradient angles and second derivatives. Only the forward pass has to be inside the block;
    the backward may run later, on any thread. Blocks may be nested. The block switches the model, not the thread, so
    it also affects a forward pass of the same model on another thread.

    Examples:
        >>> model = biotorch.convert(nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)), "fa")
        >>> x = torch.randn(4, 8, requires_grad=True)
        >>> with biotorch.true_gradients(model):
        ...     y = model(x)
        >>> (by_rule,), (true,) = torch.autograd.grad(model(x).sum(), x), torch.autograd.grad(y.sum(), x)
        >>> torch.allclose(by_rule, true)
        False
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


#: A replacement for `FeedbackLayer.carry`: (layer, parameter, x, bias, operation) -> y.
Carry: TypeAlias = Callable[[FeedbackLayer, str, Tensor, Tensor | None, Operation], Tensor]

#: Kinds of hooks that a module keeps, all of them in dictionaries.
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def carry_truly(layer: FeedbackLayer, parameter: str, x: Tensor, bias: Tensor | None, operation: Operation) -> Tensor:
    """Apply a layer with its true gradient, whatever its rule. A weight that is all zero, which would hide every
    gradient, is replaced by noise.
    """
    weight = layer.oriented(parameter).detach()
    if not weight.any():
        weight = torch.randn_like(weight)
    y: Tensor = Feedback.apply(x, weight, bias, None, operation, lambda w, _: w, False, None)
    return y


@contextlib.contextmanager
def rehearsal(model: nn.Module, carry: Carry) -> Iterator[None]:
    """Let the forward passes of `model` inside the `with` block be experiments, in which examples do not meet.

    Every product of a feedback layer is computed by `carry`, residual blocks are not cut, dropout is off, and
    normalisations use their running statistics. Buffers and the random state are restored. Hooks on modules do not run,
    except torch's own (weight norm, pruning, sharding), without which a module may have no weight.
    """
    layers = [module for module in model.modules() if isinstance(module, FeedbackLayer)]
    mixing: list[nn.Module] = [each for each in model.modules() if isinstance(each, _NormBase | _DropoutNd)]
    quiet = [module for module in mixing if module.training]
    hooks = [(module, name, getattr(module, name)) for module in model.modules() for name in _HOOKS]
    # Averages of weights, which a forward pass may move (a momentum encoder), are frozen.
    frozen = [(p, p._version, p.detach().clone()) for p in model.parameters() if not p.requires_grad]
    with isolated(model, attributes=True):
        try:
            for layer in layers:
                vars(layer).update(carry=functools.partial(carry, layer), cut=lambda x: x)
            for module in quiet:
                module.training = False
            for module, name, found in hooks:
                if found:
                    own = OrderedDict((key, hook) for key, hook in found.items() if _is_torchs(hook))
                    setattr(module, name, own)
            yield
        finally:
            for layer in layers:
                del layer.__dict__["carry"], layer.__dict__["cut"]
            for parameter, version, value in frozen:
                if parameter._version != version:
                    parameter.data.copy_(value)
            for module in quiet:
                module.training = True
            for module, name, found in hooks:
                setattr(module, name, found)


def _is_torchs(hook: Any) -> bool:
    while isinstance(hook, functools.partial):
        hook = hook.func
    home = getattr(hook, "__module__", None) or type(hook).__module__
    return home.partition(".")[0] in ("torch", "accelerate", "deepspeed")
