"""Forward passes that are followed operation by operation: one is recorded, others repeat it with other weights.

In a repetition every activation is set back to its recorded value, and only what is computed from parameters alone
changes. A gradient that differs then has read a weight, whatever copied, cast, scaled or composed that weight.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from biotorch.auditing.meetings import Meetings
from biotorch.auditing.operations import is_mutable
from biotorch.auditing.tags import ACTIVATION, is_activation
from biotorch.conversion.nested import leaves
from biotorch.errors import AuditError


class Step(NamedTuple):
    """One operation of the recorded pass: its results that are activations, and where they are (None: everywhere)."""

    operation: Any
    results: list[tuple[int, Tensor, Tensor | None]]


class Follower(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Base of the modes: it calls `follow` for the operations of a forward pass, also if one is repeated in a backward.

    Attributes:
        backward: set it during the backward pass, where only checkpoints repeat forward operations.
    """

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and skipping it would import the compiler

    def __init__(self, names: Mapping[nn.Module, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.backward = False
        self.names = names
        self._running: list[nn.Module] = []

    @property
    def module(self) -> nn.Module | None:
        """The innermost module whose forward is running."""
        return self._running[-1] if self._running else None

    @contextlib.contextmanager
    def aware_of_modules(self) -> Iterator[None]:
        """Keep `module` up to date inside the `with` block."""

        def enter(module: nn.Module, args: Any) -> None:
            self._running.append(module)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            while self._running and self._running.pop() is not module:
                pass
            self.left(module, output)

        handles = [
            register_module_forward_pre_hook(enter),
            register_module_forward_hook(leave, always_call=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def left(self, module: nn.Module, output: Any) -> None:
        """Take note that the forward of `module` has ended."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        repeats = torch.is_grad_enabled() or self._running
        if not self.backward or repeats:
            operands = leaves((args, kwargs))
            with torch.no_grad():
                self.follow(func, args, kwargs or {}, operands, changed_by(func, args, kwargs or {}, result))
        return result

    def follow(self, func: Any, args: Any, kwargs: Any, operands: list[Tensor], results: list[Tensor]) -> None:
        raise NotImplementedError


def changed_by(func: Any, args: Any, kwargs: Any, result: Any) -> list[Tensor]:
    """The tensors that an operation made or wrote to."""
    written: list[Tensor] = []
    if is_mutable(func):
        given = {**dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)), **kwargs}
        for argument in func._schema.arguments:
            if argument.alias_info is not None and argument.alias_info.is_write:
                written += leaves(given.get(argument.name))
    return [*written, *(each for each in leaves(result) if all(each is not other for other in written))]


class Comparing(Follower):  # type: ignore[no-untyped-call]
    """Compares forward passes on different inputs: which operands and results of an operation are the same."""

    def __init__(self, names: Mapping[nn.Module, str]) -> None:
        super().__init__(names)
        self.signatures: list[tuple[Any, list[float], list[float]]] = []

    def follow(self, func: Any, args: Any, kwargs: Any, operands: list[Tensor], results: list[Tensor]) -> None:
        self.signatures.append((func, [_signature(each) for each in operands], [_signature(each) for each in results]))


def constant_results(first: Comparing, second: Comparing) -> dict[tuple[int, Any], set[int]]:
    """The results of operations that are the same in two passes although an operand is not.

    Such a result does not depend on the inputs: `w + 0 * x.sum()` is a weight.

    Returns:
        Indices of results, by number of the operation and the operation itself.
    """
    found = {}
    for number, (one, other) in enumerate(zip(first.signatures, second.signatures, strict=False)):
        if one[0] is not other[0]:
            break
        if one[1] != other[1]:
            pairs = enumerate(zip(one[2], other[2], strict=False))
            found[number, one[0]] = {index for index, (mine, theirs) in pairs if mine == theirs}
    return found


def _signature(tensor: Tensor) -> float:
    """A number that differs for tensors with different elements, as good as always."""
    if tensor.layout is not torch.strided or tensor.is_complex() or tensor.is_quantized:
        tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor.to_dense()
    flat = tensor.detach().reshape(-1).double()
    return float(flat @ torch.arange(1, len(flat) + 1, dtype=torch.float64, device=flat.device).sqrt())


class Recording(Follower):  # type: ignore[no-untyped-call]
    """Records a forward pass, with the parameters that meet activations as weights.

    Attributes:
        steps: the operations in order.
        meetings: what met what.
        opaque: modules that return a tensor whose origin nobody saw.
    """

    def __init__(
        self, names: Mapping[nn.Module, str], constant: Mapping[tuple[int, Any], set[int]], meetings: Meetings
    ) -> None:
        super().__init__(names)
        self.steps: list[Step] = []
        self.meetings = meetings
        self.opaque: set[nn.Module] = set()
        self._constant = constant

    def follow(self, func: Any, args: Any, kwargs: Any, operands: list[Tensor], results: list[Tensor]) -> None:
        number, step = len(self.steps), Step(func, [])
        self.steps.append(step)
        strangers = [each for each in operands if not self.meetings.knows(each)]
        if strangers and self.backward:
            return  # gradients are among the operands
        for each in strangers:
            self.meetings.adopt(each)
        if self.module is not None and (
            any(each.requires_grad for each in strangers) or self.meetings.hides(operands, results)
        ):
            self.opaque.add(self.module)
        old = [id(each) for each in operands]
        aliases = {each.untyped_storage()._cdata for each in operands if each.layout is torch.strided}
        mutable = is_mutable(func)
        fresh = [
            (index, each)
            for index, each in enumerate(results)
            if each.layout is torch.strided
            and (each.untyped_storage()._cdata not in aliases or (mutable and id(each) in old))
        ]
        same = self._constant.get((number, func), set())
        constant = [index in same for index, _ in fresh]
        tags = self.meetings.tags_of(func, args, kwargs, operands, [each for _, each in fresh], constant, self.module)
        for (index, each), tag in zip(fresh, tags, strict=True):
            self.meetings.tags.put(each, tag)
            if is_activation(tag):
                where = None if isinstance(tag, int) or bool((tag < 0).all()) else tag < 0
                step.results.append((index, each.detach().clone(), where))

    def receive(self, inputs: Any) -> None:
        """Take the tensors in `inputs` as activations."""
        for each in leaves(inputs):
            if each.layout is torch.strided:
                self.meetings.tags.put(each, ACTIVATION)

    def left(self, module: nn.Module, output: Any) -> None:
        if not self.backward:
            for each in leaves(output):
                if each.requires_grad and not self.meetings.knows(each):
                    self.opaque.add(module)


class Repeating(Follower):  # type: ignore[no-untyped-call]
    """Repeats a recorded pass, and sets every activation back to its recorded value."""

    def __init__(self, recording: Recording) -> None:
        super().__init__(recording.names)
        self._steps = recording.steps
        self._number = 0

    def follow(self, func: Any, args: Any, kwargs: Any, operands: list[Tensor], results: list[Tensor]) -> None:
        step = self._steps[self._number] if self._number < len(self._steps) else None
        if step is None or step.operation is not func:
            raise AuditError(f"{func} stands where {step.operation if step else 'the end'} was recorded")
        self._number += 1
        for index, value, where in step.results:
            if results[index].shape != value.shape:
                raise AuditError(f"a result of {func} has another shape")
            results[index].copy_(value if where is None else torch.where(where, value, results[index]))
