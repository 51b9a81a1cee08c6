"""Broadcast of an output layer's error to the direct layers of its network.

The autograd graph is the registry. When the backward of an output layer runs, the error e is known. `broadcast`
then walks the graph upstream and leaves e with every direct node of the same network. The engine runs those nodes
later, because they are upstream. Nothing of a pass is stored on modules, so several forwards before one backward,
copies, threads, checkpointing and several outputs need no special case. A gradient that reaches a direct layer
without passing the output layer raises an error instead of giving silent nonsense.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from biotorch.errors import ConversionWarning
from biotorch.kernel import graph
from biotorch.kernel.imperfection import Imperfection, read
from biotorch.kernel.teaching import RandomTargets, Targets

#: The function with which a rule replaces the error it broadcasts: (error, targets) -> tensor of the error's shape.
Signal: TypeAlias = Callable[[Tensor, Targets], Tensor]

#: Patterns of k rows for each example. interleaved: rows k i to k i + k - 1 to example i (windows, frames, tokens).
#: tiled: rows i, i + n, i + 2 n ... to example i, as `torch.cat` gives them.
Pattern: TypeAlias = Literal["interleaved", "tiled"]
#: Result of the experiment; `other` if rows and examples follow no pattern.
Found: TypeAlias = Pattern | Literal["other"]


#: Number of first backward passes that are searched for dropped terms of the loss, which may begin after a warm-up.
_CHECKS = 8


class Network:
    """Identity of the network that layers were converted with: a layer hears the outputs with the same `Network`.

    A deep copy of the whole network has one new object for all of its layers; a copy of a part stays in the network.

    Attributes:
        rows: what the user declared about rows: a pattern, or a function of the network's inputs that returns the
            example of each row; None if it is found out by experiment.
        found: results of the experiment by layer, rows per example and examples per row (one of them is 1).
        is_orderly: whether no layer is known to have as many rows as there are examples in another order.
        given: the indices that the function returned for the present forward pass, with patterns of layer names.
        checks: number of backward passes that are still searched for terms of the loss that a direct layer drops.
    """

    def __init__(self, rows: Pattern | Callable[..., Any] | None = None) -> None:
        self.rows = rows
        self.found: dict[tuple[str, int, int], Found] = {}
        self.is_orderly = True
        self.given: tuple[tuple[str, Tensor], ...] = ()
        self.checks = _CHECKS
        #: The module that was converted; None after unpickling, until its next forward pass.
        self.whole: weakref.ref[Any] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Network:
        root = None if self.whole is None else self.whole()
        if root is not None and id(root) not in memo:
            return self
        copied = memo[id(self)] = Network(self.rows)
        copied.found, copied.is_orderly, copied.checks = dict(self.found), self.is_orderly, self.checks
        copied.whole = None if root is None else weakref.ref(memo[id(root)])
        return copied

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "given": (), "whole": None}


class Output(NamedTuple):
    """Mark of an output layer, whose error is projected by rows `start` to `stop` (excluded) of every B.

    `inferred` is for layers built by hand, where nobody said which layer is last. Such a layer is an
    output exactly when no error reaches it from downstream.

    `whole` are the first and last row + 1 of a dense B if the output has positions in space: such a B projects the
    whole output, (channels * positions).
    """

    start: int
    stop: int
    inferred: bool = False
    network: Network | None = None
    whole: tuple[int, int] | None = None


class Slice(NamedTuple):
    """B of a layer when all layers share one matrix: the first `size` columns of that matrix, times `scale`."""

    size: int
    scale: float


class Receiver(NamedTuple):
    """Settings with which a layer receives the error of the output.

    Attributes:
        label: name of the layer for error messages.
        columns: the layer's part of a matrix shared by all layers, or None if it has a B of its own.
        signal: function of the rule that replaces the error, or None.
        clip: whether to clamp the projected error to [-1, 1].
        dense: whether B projects the whole output if the output has positions in space.
        network: the network whose outputs the layer hears; None for layers built by hand.
        given: the declared example of each row, for patterns of layer names and numbers of rows.
        imperfection: how B, or the matrix that contains it, is read; None if as it is.
    """

    label: str
    columns: Slice | None = None
    signal: Signal | None = None
    clip: bool = False
    dense: bool = False
    network: Network | None = None
    given: tuple[tuple[str, Tensor], ...] = ()
    imperfection: Imperfection | None = None

    def example_of(self, count: int) -> Tensor | None:
        """The declared example of each of `count` rows, or None."""
        fitting = (index for pattern, index in self.given if len(index) == count and fnmatchcase(self.label, pattern))
        return next(fitting, None)


class SentError:
    """Error (*positions, n_out) of one output layer in one backward pass, for all layers upstream."""

    __slots__ = ("_cast", "_projected", "_signals", "_whole", "output", "targets", "tensor")

    def __init__(self, output: Output, tensor: Tensor, targets: Targets) -> None:
        self.output, self.tensor, self.targets = output, tensor, targets
        self._signals: dict[Signal, SentError] = {}
        self._cast: dict[torch.dtype, Tensor] = {}
        self._projected: dict[tuple[int, torch.dtype], Tensor] = {}
        self._whole: SentError | None = None

    def heard_by(self, receiver: Receiver) -> SentError:
        """The error as `receiver` projects it: the signal that its rule makes of it, flattened for a dense B.

        Each is computed once for all layers.

        Raises:
            RuntimeError: the layer's dense B was made for another size of the output.
        """
        if receiver.signal is None and not receiver.dense:
            return self
        sent = self
        if receiver.signal is not None:
            if receiver.signal not in self._signals:
                signal = receiver.signal(self.tensor, self.targets)
                self._signals[receiver.signal] = SentError(self.output, signal, self.targets)
            sent = self._signals[receiver.signal]
        return sent._flat(receiver.label) if receiver.dense and sent.output.whole is not None else sent

    def _flat(self, label: str) -> SentError:
        """The error of the whole output, (N, n_out * positions), with channels before positions."""
        if self._whole is None:
            assert self.output.whole is not None
            start, stop = self.output.whole
            tensor = self.tensor.movedim(-1, 1).flatten(1)
            if tensor.shape[1] != stop - start:
                raise RuntimeError(
                    f"{label}: feedback='dense' was made for an output of {stop - start} values, but this output has "
                    f"{tensor.shape[1]}: convert with inputs=... of this size"
                )
            self._whole = SentError(self.output._replace(start=start, stop=stop), tensor, self.targets)
        return self._whole

    def to(self, dtype: torch.dtype) -> Tensor:
        """The error in `dtype`, converted once."""
        if dtype not in self._cast:
            self._cast[dtype] = self.tensor.to(dtype)
        return self._cast[dtype]

    def projected_by(self, matrix: Tensor, dtype: torch.dtype, imperfection: Imperfection | None) -> Tensor:
        """Product (*positions, columns) of the error and its rows of a shared matrix, computed once.

        The matrix has the shape (n_out of all outputs together, columns). It is read once, for all layers.
        """
        key = (matrix.data_ptr(), dtype)
        if key not in self._projected:
            rows = read(matrix, imperfection)[self.output.start : self.output.stop]
            self._projected[key] = self.to(dtype) @ rows.to(dtype)
        return self._projected[key]


class Inbox:
    """Errors that were left with one direct node in one backward pass.

    They are tagged with the engine's pass. A graph that is walked twice (`retain_graph`, a partial
    `autograd.grad`) therefore never sees the error of an earlier pass.
    """

    __slots__ = ("_errors", "_task", "receiver")

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self._task = -1
        self._errors: list[SentError] = []

    def put(self, error: SentError) -> None:
        task = torch._C._current_graph_task_id()
        if task != self._task:
            self._task, self._errors = task, []
        self._errors.append(error)

    def take(self) -> list[SentError]:
        fresh = self._task == torch._C._current_graph_task_id()
        errors, self._errors = (self._errors if fresh else []), []
        return errors


def broadcast(node: Any, output: Output, error: Tensor) -> SentError:
    """Leave `error` with every direct node of the same network upstream of `node`, the output layer's node.

    `node.targets` holds the targets that were given around its forward pass.
    """
    sent = SentError(output, error, node.targets.arranged(node.operation.output_error, error))
    seen, frontier = {node}, [node]
    while frontier:
        for upstream, _ in frontier.pop().next_functions:
            if upstream is None or upstream in seen:
                continue
            seen.add(upstream)
            frontier.append(upstream)
            inbox = getattr(upstream, "biotorch_inbox", None)
            if inbox is not None and inbox.receiver.network is output.network:
                inbox.put(sent)
    network = output.network
    if network is not None and network.checks and not isinstance(node.targets, RandomTargets):
        network.checks = 0 if _warn_of_dropped_terms(network) else network.checks - 1
    return sent


def _warn_of_dropped_terms(network: Network) -> bool:
    """Warn, and return whether, a part of the loss enters `network` behind a direct layer and not through an output.

    An example is the Kullback-Leibler term of a variational autoencoder. The layer learns from it, but what it hands on
    is the projected error alone.
    """
    running = graph.running()
    outputs = {each for each in running if _network_of(getattr(each, "output", None)) is network}
    inside = graph.upstream(outputs)
    entered = {each for outside in running - inside for each in graph.inputs(outside) if each in inside - outputs}
    inboxes = {each: getattr(each, "biotorch_inbox", None) for each in graph.upstream(entered, stop=outputs)}
    heard = {each: inbox.receiver for each, inbox in inboxes.items() if inbox is not None}
    names = sorted({to.label for each, to in heard.items() if to.network is network and each.needs_input_grad[0]})
    if names:
        warnings.warn(
            f"part of the loss does not come through the network's output layer: it reaches {', '.join(names)}, which "
            "learn from it but do not pass it on, because layers under a direct rule hear the error of the output "
            "alone. To send it to the layers in front, too, name every layer that the loss is computed from: "
            "biotorch.convert(model, ..., output=[...])",
            ConversionWarning,
            stacklevel=2,
        )
    return bool(names)


def _network_of(output: Any) -> Network | None:
    return output.network if isinstance(output, Output) else None
