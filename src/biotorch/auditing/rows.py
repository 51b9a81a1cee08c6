"""Test by experiment whether each row of a direct layer hears the error of its own example."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from biotorch.conversion import nested
from biotorch.kernel import teaching
from biotorch.kernel.projection import Operation
from biotorch.layers import FeedbackLayer
from biotorch.layers.networks import Carry, carry_truly, isolated, rehearsal


def hears_own(model: nn.Module, inputs: Any) -> dict[str, bool | None]:
    """Test for each layer under a direct rule whether its rows hear only errors of examples that they take part in.

    The errors of some examples are set to zero, by the digits of their numbers. A row that a layer hands an error to
    although the true gradient of the row is then zero hears another example. Normalisations use their running
    statistics, which do not mix examples. Parameters, `.grad`, buffers and the random state are left as they were.

    Args:
        model: the network.
        inputs: a batch, given as a tensor, a tuple of positional arguments or a mapping of keyword arguments.

    Returns:
        Answers by the layer's name. None if the experiment cannot tell: no gradient reaches the layer, the rule sends
        something that does not depend on the error (`drtp`), or the network is time-major.

    Raises:
        RuntimeError: it is not known which rows belong to which example.
    """
    args, kwargs = nested.arguments(inputs)
    with torch.enable_grad(), teaching.given(teaching.RandomTargets()):
        with isolated(model, attributes=True):
            model(*args, **kwargs)  # networks inside search for their rows at their first forward pass
        heard = _reached(model, args, kwargs, lambda layer, *given: type(layer).carry(layer, *given))
        true = _reached(model, args, kwargs, carry_truly)
    names = {module: name for name, module in model.named_modules()}
    found: dict[str, bool | None] = {}
    for (layer, mine), (_, theirs) in zip(heard, true, strict=True):
        answer, name = _answer(mine, theirs), names[layer]
        before = found.get(name)
        found[name] = answer if before is None else before if answer is None else before and answer
    return found


class _Call(NamedTuple):
    """A use of a layer: its input for a direct layer, its output for an output layer, and an empty output."""

    layer: FeedbackLayer
    edge: GradientEdge
    operation: Operation
    y: Tensor


def _answer(heard: Tensor | None, true: Tensor | None) -> bool | None:
    """The verdict from the rows that are reached, (masks, rows) each; the first mask is that of no error at all."""
    if heard is None or true is None or heard[0].any():
        return None
    alive = heard.any(0) & true.any(0)
    return None if not alive.any() else not bool((heard & ~true & alive).any())


def _masks(n: int) -> Iterator[Tensor]:
    """Masks (n,) of examples: none, and for each binary digit those whose number has it and those whose has not."""
    number = torch.arange(n)
    yield torch.zeros(n)
    for digit in range(max(1, (n - 1).bit_length())):
        yield from ((number >> digit & 1).float(), 1 - (number >> digit & 1).float())


def _reached(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], carry: Carry
) -> list[tuple[FeedbackLayer, Tensor | None]]:
    """Rows of each direct layer's input that get a gradient through this layer, (masks, rows), call by call.

    There is one entry for each call and each number of rows that outputs have.
    """
    inputs: list[_Call] = []
    outputs: list[_Call] = []
    recording = True

    def record(layer: FeedbackLayer, parameter: str, x: Tensor, bias: Tensor | None, operation: Operation) -> Tensor:
        if not recording:  # a checkpoint runs the layer again
            return carry(layer, parameter, x, bias, operation)
        x = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()  # read by this layer alone
        y = carry(layer, parameter, x, bias, operation)
        if layer.rule.direct and x.dim() > 1:
            inputs.append(_Call(layer, get_gradient_edge(x), operation, y.detach()))
        if layer.output is not None and operation.output_error(y).dim() > 1:
            outputs.append(_Call(layer, get_gradient_edge(y), operation, y.detach()))
        return y

    found: list[tuple[FeedbackLayer, Tensor | None]] = []
    with rehearsal(model, record):
        model.forward(*nested.detached(args), **nested.detached(kwargs))
        recording = False
        for n in sorted({len(each.operation.output_error(each.y)) for each in outputs}):
            ends = [each for each in outputs if len(each.operation.output_error(each.y)) == n]
            passes = [_gradients(ends, inputs, mask) for mask in _masks(n)]
            for call, gradients in zip(inputs, zip(*passes, strict=True), strict=True):
                rows = [g.flatten(1).any(1) for g in gradients if g is not None]
                told = len(rows) == len(gradients) and not call.operation.time_major
                found.append((call.layer, torch.stack(rows) if told else None))
    return found


def _gradients(ends: list[_Call], inputs: list[_Call], mask: Tensor) -> tuple[Tensor | None, ...]:
    errors = [torch.ones_like(each.y) for each in ends]
    for error, end in zip(errors, ends, strict=True):
        by_row = end.operation.output_error(error)  # a view
        by_row.mul_(mask.to(error).view(-1, *[1] * (by_row.dim() - 1)))
    edges = [each.edge for each in inputs]
    return torch.autograd.grad([end.edge for end in ends], edges, errors, allow_unused=True, retain_graph=True)
