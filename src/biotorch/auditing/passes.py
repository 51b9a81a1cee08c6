"""Passes of an audit, and the gradients that they find."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils._python_dispatch import _disable_current_modes

from biotorch import _seeding
from biotorch.auditing.noise import after_steps, overwritten
from biotorch.auditing.replay import Follower, Recording
from biotorch.conversion import nested
from biotorch.conversion.survey import Entry
from biotorch.kernel import teaching
from biotorch.kernel.functions import Cut
from biotorch.layers.networks import isolated


class Passes:
    """Forward and backward passes of a model on one batch.

    Attributes:
        readers: the names of all modules that read one input.
        called: modules whose forward has run.
        inner: those of them with an input that requires a gradient; nothing lies upstream of the others.
    """

    def __init__(
        self, model: nn.Module, inputs: Any, seed: int, entries: Mapping[str, Entry], readable: Mapping[str, nn.Module]
    ) -> None:
        """Prepare the passes.

        Args:
            model: the network.
            inputs: a batch, as `audit` takes it.
            seed: seed of the error vector.
            entries: the modules whose outputs are looked at.
            readable: the feedback layers and residual blocks, whose inputs are looked at.
        """
        self.model, self.seed, self.entries, self.readable = model, seed, entries, readable
        self.args, self.kwargs = nested.arguments(inputs)
        self.readers: dict[GradientEdge, list[str]] = {}
        self.called: set[str] = set()
        self.inner: set[str] = set()

    def gradients(
        self, follower: Follower | None = None, pairs: Iterable[tuple[Tensor, Tensor]] = ()
    ) -> dict[str, Tensor]:
        """Compute the gradients of all parameters, arguments, and inputs and outputs of layers.

        Args:
            follower: the mode in which the pass runs.
            pairs: parameters, and what they are overwritten with.
        """
        targets: dict[str, Any] = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        with (
            isolated(self.model, attributes=True),
            overwritten(pairs),
            self._hooks(targets, isinstance(follower, Recording)),
        ):
            args = nested.differentiable(self.args, targets, "args")
            kwargs = nested.differentiable(self.kwargs, targets, "kwargs")
            if isinstance(follower, Recording):
                follower.receive((args, kwargs))
            with teaching.given(teaching.RandomTargets()), _within(follower):
                outputs = self.model(*args, **kwargs)
            loss = nested.functional(outputs, _seeding.generator(self.seed + 1))
            with _within(follower, backward=True):
                gradients = torch.autograd.grad(loss, list(targets.values()), allow_unused=True)
            found = {name: g for name, g in zip(targets, gradients, strict=True) if g is not None}
            return found | after_steps(self.model, found)

    @contextlib.contextmanager
    def _hooks(self, targets: dict[str, Any], first: bool) -> Iterator[None]:
        """Add inputs and outputs of modules to `targets`, and take note of who reads what in the first pass."""

        def edge_of(x: Tensor) -> GradientEdge | None:
            with _disable_current_modes():  # it is no operation of the network
                return _before_cut(x)

        def capture(name: str, args: tuple[Any, ...]) -> None:
            edge = edge_of(args[0]) if args and isinstance(args[0], Tensor) else None
            if edge is None or input_of(name) in targets:
                return
            targets[input_of(name)] = edge
            if first:
                self.readers.setdefault(edge, []).append(name)

        def keep(name: str, args: Any, output: Any) -> None:
            self.called.add(name)
            if first and any(tensor.requires_grad for tensor in nested.tensors(args)):
                self.inner.add(name)
            tensors = nested.tensors(output)
            if tensors and tensors[0].requires_grad:
                with _disable_current_modes():
                    targets.setdefault(output_of(name), get_gradient_edge(tensors[0]))

        handles = [
            entry.module.register_forward_hook(lambda module, args, output, name=name: keep(name, args, output))
            for name, entry in self.entries.items()
        ]
        handles += [
            module.register_forward_pre_hook(lambda module, args, name=name: capture(name, args))
            for name, module in self.readable.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def uncompiled() -> contextlib.AbstractContextManager[Any]:
    """Run compiled parts as they were written, so that nothing in them is hidden."""
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    return cast("contextlib.AbstractContextManager[Any]", torch.compiler.set_stance("force_eager"))


@contextlib.contextmanager
def _within(follower: Follower | None, backward: bool = False) -> Iterator[None]:
    """Follow the operations of the `with` block."""
    if follower is None:
        yield
        return
    follower.backward = backward
    with follower.aware_of_modules(), follower:
        yield


def input_of(name: str) -> str:
    """The key of the gradient at a module's first input."""
    return f"input of {name}"


def output_of(name: str) -> str:
    """The key of the gradient at a module's output."""
    return f"output of {name}"


def _before_cut(x: Tensor) -> GradientEdge | None:
    """The edge of `x` in the autograd graph, or the edge upstream of the cut if a residual block was cut there."""
    if not x.requires_grad:
        return None
    edge = get_gradient_edge(x)
    if type(edge.node) is Cut._backward_cls:
        upstream, index = edge.node.next_functions[0]
        return None if upstream is None else GradientEdge(upstream, index)
    return edge
