"""Search for the rows of each layer's input that belong to one example, by an experiment at the first forward pass.

A direct rule projects the error of an example to the rows of this example. Shapes do not tell which they are:
`torch.cat` of two views, windows of images and nodes of graphs may all have twice as many rows as there are examples.
"""

from __future__ import annotations

import functools
import math
import threading
import weakref
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from biotorch.conversion import nested
from biotorch.kernel import graph
from biotorch.kernel.broadcast import Found, Network, Pattern
from biotorch.kernel.projection import Operation
from biotorch.layers import FeedbackLayer
from biotorch.layers.networks import carry_truly, rehearsal
from biotorch.layers.tracing import require_autograd
from biotorch.layers.watching import uncompiled

#: One experiment at a time: it changes the network while it runs.
_lock = threading.RLock()

#: Number of searches in a row that find nothing new, after which no more are made.
_PATIENCE = 3


class RowSearch:
    """Forward pre-hook of a network under a direct rule that finds out which rows belong to which example.

    At the first forward pass with gradients it runs the network in an experiment of its own (`_search`). It does so
    again for a batch of another size if nothing was found, and for inputs of another shape if layers have other numbers
    of rows than the output. Where the user declared a function, it calls that function instead.
    """

    def __init__(self, network: Network, layer: FeedbackLayer) -> None:
        self.network, self.layer = network, layer
        self.tried: set[Any] = set()
        #: Numbers of input tensors for which there is nothing more to find, and the searches without a find in a row.
        self.settled: set[int] = set()
        self.idle = 0

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self.layer.plain:  # a plain forward pass stays traceable
            if self.layer.connections:
                require_autograd(self.layer.connections[0])
            self._prepare(model, args, kwargs)

    @uncompiled
    def _prepare(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        network = self.network
        if network.whole is None:
            network.whole = weakref.ref(model)
        if isinstance(network.rows, str):
            return
        if callable(network.rows):
            network.given = _indices(network.rows(*args, **kwargs))
        else:
            with _lock:
                self._look(model, args, kwargs)

    def _look(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = nested.leaves((args, kwargs))
        if len(given) in self.settled or any(tensor.is_nested for tensor in given):
            return
        if any(each.true_gradients for each in model.modules() if isinstance(each, FeedbackLayer)):
            return
        shapes = tuple(tensor.shape for tensor in given)
        batches = tuple(shape[:1] for shape in shapes)
        uneven = any(k != m for _, k, m in self.network.found)
        if (shapes if uneven else batches) in self.tried or not _may_be_tried(model):
            return
        self.tried |= {shapes, batches}
        before = dict(self.network.found)
        try:
            complete = _search(model, self.network, args, kwargs)
        except Exception:  # noqa: BLE001  (without its hooks a network may fail in any way)
            return  # shapes decide, as for a network that is never called as a whole
        self.idle = self.idle + 1 if self.network.found == before else 0
        if self.idle == _PATIENCE or (complete and all(k == m for _, k, m in self.network.found)):
            self.settled.add(len(given))


def _may_be_tried(model: nn.Module) -> bool:
    """Whether `model` is whole, and not a replica on one of several devices, sharded, without shapes or storage."""
    parameters = list(model.parameters())
    odd = any(p.is_meta or nn.parameter.is_lazy(p) or hasattr(p, "full_tensor") for p in parameters)
    time_major = any(getattr(each, "batch_first", True) is False for each in model.modules())
    flat = any(type(each).__name__ == "FullyShardedDataParallel" for each in model.modules())
    return not odd and not time_major and not flat and not getattr(model, "_is_replica", False)


def _indices(declared: Any) -> tuple[tuple[str, Tensor], ...]:
    """The declared indices with the patterns of the layers that they are for, `*` by default."""
    if not isinstance(declared, Mapping):
        declared = {"*": declared}
    found = [(key, index) for key, value in declared.items() for index in ([value] if _is_index(value) else value)]
    if not all(_is_index(index) for _, index in found):
        raise TypeError(
            "the function rows=... returns an integer tensor (R,), the example of each row, several in a tuple, or a "
            "mapping of layer patterns to them"
        )
    return tuple((key, index.long()) for key, index in found)


def _is_index(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 1 and not value.is_floating_point()


class _Call(NamedTuple):
    """A use of a layer in the experiment: at the input of a direct layer, or at the output of an output layer."""

    label: str
    edge: GradientEdge
    rows: int
    #: The output, detached.
    y: Tensor
    operation: Operation


def _projected(gradient: Tensor) -> Tensor:
    """The gradient of x (R, ...), projected to 4 values per row, (R, 4), in the same way in every pass.

    All gradients of a network together would take as much memory as a training step. The projection is linear, so that
    factors of rows can be found in it.
    """
    values = gradient.flatten(1)
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(values.shape[1], 4, generator=generator, device="cpu")
    return values @ directions.to(values)


def _first(edges: Collection[GradientEdge]) -> list[GradientEdge]:
    """The edges with no other one upstream: a backward pass that reaches these reaches all."""
    nodes = {edge.node for edge in edges}
    of = graph.users(nodes)
    behind = graph.downstream([user for node in nodes for user in of[node]], of)
    return [edge for edge in edges if edge.node not in behind]


def _search(model: nn.Module, network: Network, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Find the example of each row of each layer's input by the true gradient, and note patterns in `network.found`.

    Each example's error has a factor of its own, a power of two, in one backward pass, and the factor 1 in another.
    A row whose gradient grew by a factor comes from the example with this factor. Factors repeat beyond 16 examples,
    at random. Rows whose gradient is zero (dead units) tell nothing. Rows that several examples reach tell nothing if
    there are fewer or more rows than examples; otherwise each must at least be reached by its own
    (nodes of a graph that have an output each, flattened tokens that attend to each other).

    Returns:
        Whether every layer told something.
    """
    inputs: list[_Call] = []
    outputs: list[_Call] = []
    recording = True

    def carry(layer: FeedbackLayer, parameter: str, x: Tensor, bias: Tensor | None, operation: Operation) -> Tensor:
        x = x if x.requires_grad else x.detach().requires_grad_()
        packed = getattr(operation, "packed", False)  # its rows are put in order by the layer itself
        y = carry_truly(layer, parameter, x, bias, operation)
        if recording and layer.network is network:  # not when a checkpoint runs the layer again
            like, error = y.detach(), operation.output_error(y)
            if layer.rule.direct and x.dim() > 1 and x.layout == torch.strided and not packed:
                inputs.append(_Call(layer.label or type(layer).__name__, get_gradient_edge(x), len(x), like, operation))
            if layer.output is not None and error.dim() > 1:
                outputs.append(_Call(layer.label, get_gradient_edge(y), len(error), like, operation))
        return y

    complete = True
    device = next(model.parameters()).device.type
    dtype = torch.get_autocast_dtype(device)
    # Small errors times small factors would vanish in float16.
    cast = torch.is_autocast_enabled(device) and dtype != torch.float16
    with rehearsal(model, carry), torch.autocast(device, dtype, enabled=cast):
        model.forward(*nested.detached(args), **nested.detached(kwargs))
        recording = False
        for n in {each.rows for each in outputs}:
            ends = [each for each in outputs if each.rows == n]
            trial = _Trial(ends, inputs, n)
            for number, call in enumerate(inputs):
                common = math.gcd(n, call.rows)
                k, m = call.rows // common, n // common
                if 1 in (n, call.rows) or 1 not in (k, m):
                    complete &= n > 1 or call.rows == 1
                    continue
                found = trial.pattern(number, call.rows)
                complete &= found is not None
                if found is not None:
                    before = network.found.get((call.label, k, m), found)
                    network.found[call.label, k, m] = found if found == before else "other"
    network.is_orderly = "other" not in network.found.values()
    return complete and bool(outputs)


class _Trial:
    """Backward passes of one experiment, from the outputs with `n` rows to all recorded inputs."""

    def __init__(self, ends: list[_Call], inputs: list[_Call], n: int) -> None:
        self.ends, self.inputs, self.n = ends, inputs, n
        self.noise = [torch.randn_like(each.y) for each in ends]
        edges = list(dict.fromkeys(each.edge for each in inputs))
        self.first = _first(edges)
        self.later = [edge for edge in edges if edge not in self.first]
        self.plain = self._gradients(torch.ones(n))
        self.scaled: dict[tuple[int, str], tuple[Tensor, list[Tensor | None]]] = {}

    def _gradients(self, factors: Tensor) -> list[Tensor | None]:
        """Projected gradients (rows, 4) at all inputs; `factors` (n,) multiply the errors of the output's rows."""
        errors = [noise.clone() for noise in self.noise]
        for error, end in zip(errors, self.ends, strict=True):
            by_row = end.operation.output_error(error)  # a view
            by_row.mul_(factors.to(error).view(-1, *[1] * (by_row.dim() - 1)))
        found: dict[GradientEdge, Tensor] = {}

        def note(edge: GradientEdge, gradients: Sequence[Tensor | None]) -> None:
            gradient = gradients[edge.output_nr]
            if gradient is not None:
                found[edge] = _projected(gradient)

        handles = [edge.node.register_prehook(functools.partial(note, edge)) for edge in self.later]
        try:
            ends = [end.edge for end in self.ends]
            captured = torch.autograd.grad(ends, self.first, errors, allow_unused=True, retain_graph=True)
        finally:
            for handle in handles:
                handle.remove()
        found.update((edge, _projected(g)) for edge, g in zip(self.first, captured, strict=True) if g is not None)
        return [found.get(each.edge) for each in self.inputs]

    def pattern(self, number: int, rows: int) -> Found | None:
        """The pattern of the rows of one input; `other` if there is none, None if the experiment cannot tell."""
        plain = self.plain[number]
        if plain is None:
            return None
        alive = plain.any(1) & plain.isfinite().all(1)
        if not alive.any():
            return None
        patterns: list[Pattern] = ["interleaved"] if rows == self.n else ["interleaved", "tiled"]
        fitting = [pattern for pattern in patterns if self._fits(number, rows, pattern, plain, alive)]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            return None
        return "interleaved" if rows == self.n and self._reaches_itself(number, plain, alive) else "other"

    def _fits(self, number: int, rows: int, pattern: str, plain: Tensor, alive: Tensor) -> bool:
        units = min(rows, self.n)
        key = (units, pattern if units < self.n else "")
        if key not in self.scaled:
            exponents = torch.randperm(units) % 16 - 8
            factors = 2.0**exponents
            self.scaled[key] = factors, self._gradients(factors[_unit(self.n, units, pattern)])
        factors, gradients = self.scaled[key]
        scaled = gradients[number]
        assert scaled is not None
        expected = plain * factors.to(plain)[_unit(rows, units, pattern).to(plain.device)].unsqueeze(1)
        off = (scaled - expected).norm(dim=1) > 0.1 * expected.norm(dim=1)
        return not (off & alive).any()

    def _reaches_itself(self, number: int, plain: Tensor, alive: Tensor) -> bool:
        """Whether rows mix, and each is reached by the output's row with its own number, judged by halves."""
        scaled, n = self.scaled[self.n, ""][1][number], self.n
        assert scaled is not None
        similarity = torch.cosine_similarity(scaled, plain, dim=1)
        if not ((similarity < 0.99) & alive).any():
            return False
        first = torch.arange(n) < n // 2
        for half in (first, ~first):
            reached = self._gradients(half.float())[number]
            assert reached is not None
            if (alive & half.to(alive.device) & ~reached.any(1)).any():
                return False
        return True


def _unit(rows: int, units: int, pattern: str) -> Tensor:
    """The unit to which each row belongs, (rows,), if a whole number of rows belongs to each of `units`."""
    index = torch.arange(rows)
    return index // (rows // units) if pattern == "interleaved" else index % units
