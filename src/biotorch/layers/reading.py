"""Check that no weight of a feedback layer is used without the layer, where backpropagation would go through W itself.

`F.linear(x, self.fc.weight)` computes what `self.fc(x)` computes, but its backward knows nothing of B. Only the
autograd graph shows such a use, so a hook on W looks at the graphs of the first backward passes, until W is updated.
"""

from __future__ import annotations

import functools
import math
import weakref
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from biotorch.kernel import graph
from biotorch.kernel.functions import Cut, Direct, Feedback
from biotorch.layers.connection import Connected
from biotorch.layers.watching import is_paused

#: Nodes that carry an error backwards by a rule.
_OURS = (Feedback._backward_cls, Direct._backward_cls, Cut._backward_cls)
#: Nodes of compiled graphs, which show nothing of what is inside.
_COMPILED = ("CompiledFunctionBackward", "ApplyTemplateBackward")
#: Nodes that choose rows of a matrix, as an Embedding that is tied to the output layer does.
_LOOKUPS = ("EmbeddingBackward", "EmbeddingBagBackward", "IndexBackward", "IndexSelectBackward", "GatherBackward")
#: Nodes whose backward needs no value of their operands.
_SUMS = ("AddBackward", "SubBackward", "CatBackward", "StackBackward")
#: Number of backward passes after which the check ends even if no update of W was seen.
_PATIENCE = 8


class UseCheck:
    """The check of one weight of a layer, until its first update.

    Compiled graphs are not looked into, and a frozen weight has no place in the graph.
    """

    def __init__(self, layer: Connected, parameter: str, weight: Tensor) -> None:
        self._layer, self._parameter = weakref.ref(layer), parameter
        self._weight, self._version = weakref.ref(weight), weight._version
        self._looks = 0
        hook = functools.partial(UseCheck._look, weakref.proxy(self))
        vars(hook)["__torch_unserializable__"] = True  # a copy in another process checks for itself
        self._handle: Any = weight.register_hook(hook)  # type: ignore[no-untyped-call]
        weakref.finalize(self, self._handle.remove)

    def _look(self, gradient: Tensor) -> None:
        """Look at the graph of the backward pass in which `gradient` reached the weight.

        Raises:
            RuntimeError: the weight is used outside of its layer.
        """
        weight, layer = self._weight(), self._layer()
        if weight is None or layer is None or self._looks == _PATIENCE:
            self._handle.remove()
            return
        if is_paused():
            return
        if weight._version != self._version:
            self._version = weight._version
            if self._looks:  # else it was no update: the weight was loaded, or given to all processes
                self._handle.remove()
                return
        if not _graph()[1]:
            return  # a penalty in a pass of its own
        self._looks += 1
        if (use := _outside_use(weight)) is not None:
            inside, _, name = layer.label.rpartition(".")
            raise RuntimeError(
                f"{layer.label or type(layer).__name__}: its {self._parameter} is used outside of the layer, by "
                f"{inside or 'the network'} ({use}), where the rule has no effect and the error goes back by W. Call "
                f"the layer, {name or 'layer'}(x), or leave it on backpropagation: {{{layer.label!r}: None, '*': ...}}"
            )


def checks_of(layer: Connected) -> list[UseCheck] | None:
    """Start the checks of a layer's weights; None if that has to wait: all are frozen, or a graph is compiled."""
    if getattr(layer.rule, "transports", "") == "weights":
        return []
    own = [each for each in layer.connections if not each.is_computed and each.trained.requires_grad]
    if torch.compiler.is_compiling() or not own:
        return None
    return [UseCheck(layer, each.parameter, each.trained) for each in own]


def _outside_use(weight: Tensor) -> str | None:
    """The operation outside of feedback layers that multiplies `weight` with an activation; None if there is none."""
    users, active = _graph()
    frontier, seen = [get_gradient_edge(weight).node], set()
    while frontier:
        node = frontier.pop()
        for user in users.get(node, ()):
            name: str = user.name()
            if user in seen or isinstance(user, _OURS) or name.startswith(_LOOKUPS + _COMPILED):
                continue
            seen.add(user)
            if all(math.prod(node._input_metadata[i].shape) == 1 for each, i in user.next_functions if each is node):
                continue  # a penalty
            if not any(other in active for other, _ in user.next_functions if other is not node):
                frontier.append(user)
            elif not name.startswith(_SUMS):
                return name
    return None


_Graph: TypeAlias = tuple[dict[Any, list[Any]], set[Any]]
_known: dict[int, _Graph] = {}


def _graph() -> _Graph:
    """The users of every node of the graph of this backward pass, and the nodes that depend on a feedback layer."""
    task = torch._C._current_graph_task_id()
    if task not in _known:
        users = graph.users(graph.roots())
        _known[task] = users, graph.downstream((node for node in users if isinstance(node, _OURS)), users)

        def forget() -> None:
            _known.pop(task, None)

        torch.autograd.Variable._execution_engine.queue_callback(forget)
    return _known[task]
