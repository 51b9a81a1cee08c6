"""The limit of each rule: the step that does no more than the rule's arithmetic demands.

- A feedback rule whose B is fixed: plain backpropagation itself, a ratio of 1.
- A rule that learns B by the optimizer (`kp`): plain, and a second optimizer step over tensors of B's shapes.
- A rule that redraws B (`brsf`): plain, and per update 16 random bits for each entry of B, drawn four at once.
- A rule whose B follows W in its own way (`wm`, `ia`, `sa`, `sham`): plain, and one copy of W into B per
  update.
- A direct rule: its own step with a projection that costs nothing, because it returns a tensor that is kept.
  Under `dkp` the gradient of B costs nothing, too; the optimizer's step of B remains.
- `shallow`: plain, with everything but the output layer frozen.

Copies and draws are of connections whose input needs a gradient; no other uses its B.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.networks import Network
from benchmarks.stepping import Stepper, Way, sgd
from biotorch import convert, feedback_parameters, rules, targets
from biotorch.kernel import projection
from biotorch.layers import connections
from biotorch.rules.brsf import BatchwiseRandomSign


@dataclasses.dataclass(frozen=True)
class Limit:
    """A step to measure. Rules with equal limits share it.

    Attributes:
        name: what the step does.
        rule: rule of its network; None is plain PyTorch.
    """

    name: str
    rule: str | None = None

    def stepper(self, network: Network, rule: str, way: Way) -> Stepper:
        """The step for `rule`."""
        if self.rule is not None:
            return Stepper(network, self.rule, way, around=FreeProjection())
        model = convert(network.build(), rule)
        return Stepper(network, None, way, prepare=_PREPARATIONS[self.name](model, network))


def limit_of(name: str) -> Limit | None:
    """The limit of a rule; None if it is plain backpropagation."""
    rule = rules.get(name)
    if rule.trains_output_only:
        return Limit("only the output layer")
    if rule.direct:
        return Limit(f"{name} with a free projection", name)
    if rule.learns:
        return Limit("a second optimizer step")
    if issubclass(rule, BatchwiseRandomSign):
        return Limit("random bits")
    return Limit("a copy of W") if rule.has_update() else None


# Steps on plain PyTorch ------------------------------------------------------------------------

#: Function that changes the plain network, and returns what is to be done after each update.
_Prepare = Callable[[nn.Module], Callable[[], None]]


def _only_output(model: nn.Module, network: Network) -> _Prepare:
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    def prepare(plain: nn.Module) -> Callable[[], None]:
        for name, parameter in plain.named_parameters():
            parameter.requires_grad_(name in trained)
        return lambda: None

    return prepare


def _second_step(model: nn.Module, network: Network) -> _Prepare:
    twins = [nn.Parameter(torch.randn(each.shape)) for each in feedback_parameters(model)]
    for twin in twins:
        twin.grad = torch.randn_like(twin)
    optimizer = sgd(twins)

    def step() -> None:
        optimizer.step()

    return lambda plain: step


def _random_bits(model: nn.Module, network: Network) -> _Prepare:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.empty(-(-weight.numel() // 4), dtype=torch.int64) for weight in carrying(model, network)]

    def draw() -> None:
        for each in drawn:
            each.random_(generator=generator)

    return lambda plain: draw


def _copy(model: nn.Module, network: Network) -> _Prepare:
    weights = carrying(model, network)
    twins = [weight.clone() for weight in weights]
    return lambda plain: lambda: torch._foreach_copy_(twins, weights)


_PREPARATIONS: dict[str, Callable[[nn.Module, Network], _Prepare]] = {
    "only the output layer": _only_output,
    "a second optimizer step": _second_step,
    "random bits": _random_bits,
    "a copy of W": _copy,
}


def carrying(model: nn.Module, network: Network) -> list[Tensor]:
    """Weights of the connections that hand a gradient to their input."""
    found: set[int] = set()

    def note(layer: nn.Module, arguments: Sequence[Any], keywords: dict[str, Any]) -> None:
        first = next(each for each in (*arguments, *keywords.values()) if isinstance(each, Tensor))
        if first.requires_grad:
            found.add(id(layer))

    every = connections(model).values()
    layers = {id(each.layer): each.layer for each in every}
    handles = [
        layer.register_forward_pre_hook(note, with_kwargs=True)
        for layer in layers.values()
        if isinstance(layer, nn.Module)
    ]
    inputs, labels = network.batch(2)
    with targets(labels):
        model(inputs)
    for handle in handles:
        handle.remove()
    return [each.weight.detach() for each in every if id(each.layer) in found]


# Direct rules ----------------------------------------------------------------------------------


class FreeProjection(contextlib.AbstractContextManager[None]):
    """Context in which the error arrives at a layer as a kept tensor, and a B that learns gets a gradient of zeros."""

    def __init__(self) -> None:
        self._kept: dict[object, Tensor] = {}

    def __enter__(self) -> None:
        self._patch = mock.patch.multiple(projection, projected=self._projected, learned=self._learned)
        self._patch.start()

    def __exit__(self, *error: object) -> None:
        self._patch.stop()

    def _projected(self, operation: object, receiver: object, errors: object, x: Tensor, feedback: Tensor) -> Tensor:
        key = x.shape, x.stride(), x.dtype  # not the receiver, which is made anew in every forward pass
        if key not in self._kept:
            self._kept[key] = torch.randn_like(x).mul_(1e-3)
        return self._kept[key]

    def _learned(self, operation: object, receiver: object, errors: object, x: Tensor, feedback: Tensor) -> Tensor:
        return torch.zeros_like(feedback)
