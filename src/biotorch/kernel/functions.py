"""The kernel: how an error travels without weight transport.

Every layer of the package computes its output from `x`, `W` and `b` as usual; the Functions here
replace the one term of the backward pass that needs `W`, the gradient handed to the input.

- `Feedback` (FA, sign rules, backpropagation itself): dx is the layer's own vector-Jacobian product
  with the feedback weights in the place of W (paper, equation 3). One fused call also gives dW and db.
- `Direct` (DFA): dx is the error of the network's output, projected by the layer's feedback
  (paper, equation 4). The chain of vector-Jacobian products is never computed.
- `Cut`: no gradient crosses it but the broadcast error; it stands at the boundary of a residual block.

How e gets from the output layer to the direct layers is in `broadcast`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from biotorch.kernel import teaching
from biotorch.kernel.broadcast import Inbox, Output, SentError, Signal, Slice, aligned, broadcast

_Callable = TypeVar("_Callable", bound=Callable[..., Any])


def uncompiled(function: _Callable) -> _Callable:
    """Keep `function` out of torch.compile, at the price of a graph break.

    As `torch.compiler.disable`, which imports the compiler when it is called: that takes as long as importing torch,
    so it is called when somebody else has loaded the compiler.
    """
    disabled: list[_Callable] = []

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not disabled:
            if "torch._dynamo" not in sys.modules:
                return function(*args, **kwargs)
            disabled.append(torch.compiler.disable(function))  # type: ignore[no-untyped-call]
        return disabled[0](*args, **kwargs)

    return call  # type: ignore[return-value]


#: Gradients for (input, weight, bias); None where the mask did not ask for one.
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


class Operation(Protocol):
    """What a layer type supplies: its linear map, its derivative, and its direct projection."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor: ...

    def backward(self, dy: Tensor, x: Tensor, weight: Tensor, mask: Sequence[bool]) -> Gradients:
        """Gradients where `mask` asks; dx is taken with `weight`, whatever the forward used."""
        ...

    def output_error(self, dy: Tensor) -> Tensor:
        """The gradient of this operation's output with channels last: (N, ..., n_out)."""
        ...

    @property
    def batch_dim(self) -> int:
        """Where the batch is among the positions."""
        ...

    @property
    def time_major(self) -> bool:
        """Whether the layer is part of a time-major network."""
        ...

    def positions(self, x: Tensor) -> tuple[int, ...]:
        """The leading dimensions of `x` that may each hear an error of their own, the batch among them."""
        ...

    def spread(self, projected: Tensor, x: Tensor) -> Tensor:
        """B e, (*positions, elements of a row of B) or broadcastable to that, laid out in the shape of `x`."""
        ...


class Receiver(NamedTuple):
    """How a layer hears the error of the output.

    `label` names it in errors; `columns` is its part of a matrix that all share; `signal` is what its rule sends in
    the place of the error, `clip` whether what arrives is clamped.
    """

    label: str
    columns: Slice | None = None
    signal: Signal | None = None
    clip: bool = False


def _projected(
    operation: Operation, receiver: Receiver, errors: Sequence[SentError], x: Tensor, feedback: Tensor
) -> Tensor:
    """The sum over output layers of B e, in the shape and type of `x`."""
    label, columns = receiver.label, receiver.columns
    place = operation.positions(x), operation.batch_dim, label, operation.time_major
    terms = []
    for error in (sent.carried_by(receiver.signal) for sent in errors):
        if columns is None:
            rows = feedback[error.output.start : error.output.stop].to(x.dtype).flatten(1)
            projected = aligned(error.to(x.dtype), *place) @ rows
        else:
            whole = error.projected_by(feedback, x.dtype)
            projected = aligned(whole, *place)[..., : columns.size] * columns.scale
        try:
            terms.append(operation.spread(projected, x))
        except RuntimeError as error:
            raise RuntimeError(
                f"{label}: the output's error does not fit an input {tuple(x.shape)}: {error}"
            ) from error
    return terms[0] if len(terms) == 1 else torch.stack(terms).sum(0)


def _heard(
    operation: Operation, receiver: Receiver, errors: Sequence[SentError], x: Tensor, feedback: Tensor
) -> Tensor:
    """What is handed on in the place of the gradient of `x`."""
    projected = _projected(operation, receiver, errors, x, feedback)
    return projected.clamp(-1, 1) if receiver.clip else projected


def _met(operation: Operation, receiver: Receiver, errors: Sequence[SentError], x: Tensor, feedback: Tensor) -> Tensor:
    """The product of the errors that B brings and the input that they meet: the derivative by B of <B e, x>.

    Of an error that many positions hear (of an image, a text) it is the mean over them: what a dense B would find,
    averaged.
    """
    with torch.enable_grad():
        variable = feedback.detach().requires_grad_()
        projected = _projected(operation, receiver, errors, x, variable)
    (product,) = torch.autograd.grad(projected, variable, x)
    positions, sent = x.numel() // feedback.shape[1], max(error.tensor[..., 0].numel() for error in errors)
    return product / max(1.0, positions / max(1, sent))


def _stray_gradient(label: str) -> RuntimeError:
    return RuntimeError(
        f"{label}: a gradient arrived that did not come through the network's output layer, so there is no "
        "error to project. Either the loss does not use the output layer (it never ran, or ran under "
        "reentrant checkpointing: use_reentrant=False), "
        "it was converted again without the others, or another layer is the output: name it with "
        'biotorch.convert(model, ..., output="name"), or a list of names if there are several heads '
        "(a layer built by hand: output=True)."
    )


def _cast(dtype: torch.dtype | None, x: Tensor, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The operands in autocast's type: what is saved must have the type the backward will see."""
    if dtype is None:
        return x, w, b
    return x.to(dtype), w.to(dtype), None if b is None else b.to(dtype)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The type autocast asks of a matrix product with `x`, or None where it asks for none."""
    device = x.device.type
    if not torch.is_autocast_enabled(device) or x.dtype == torch.float64:
        return None
    return torch.get_autocast_dtype(device)


def _saved(ctx: Any) -> tuple[Tensor, ...]:
    """The saved tensors; where W or B was changed since the forward, an error that says so."""
    if torch.compiler.is_compiling():
        return ctx.saved_tensors  # type: ignore[no-any-return]
    try:
        return ctx.saved_tensors  # type: ignore[no-any-return]
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise RuntimeError(
            "the weight or feedback of a layer (or its input) was changed in place between forward and backward, "
            f"for example by an optimizer step: run the forward again. {error}"
        ) from error


def _refuse_double_backward() -> None:
    # Under `create_graph=True` the engine runs backwards with gradients enabled. What it would
    # differentiate is not the derivative of anything: say so instead of returning it.
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            "double backward (create_graph=True) through a feedback layer is not defined: its gradient "
            "is not the derivative of its output. Use `with biotorch.true_gradients(model):` around the "
            "forward pass to differentiate the network itself."
        )


class Feedback(torch.autograd.Function):
    """y = op(x, W, b); in the backward, dx is taken with `feedback(W, B)` in the place of W."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        state: Tensor | None,
        operation: Operation,
        feedback: Callable[[Tensor, Tensor | None], Tensor],
        clip: bool,
        output: Output | None,
    ) -> Tensor:
        """`state` is the rule's B, None if it has none; one that requires a gradient gets a copy of W's.

        `output`, set on output layers, broadcasts dy.
        """
        x, w, b = _cast(autocast_dtype(x), x, weight, bias)
        ctx.operation, ctx.feedback, ctx.clip, ctx.output = operation, feedback, clip, output
        if output is not None:
            ctx.targets = teaching.current()
        # W itself is saved, not its cast copy: a change of W before the backward must raise.
        ctx.save_for_backward(x, weight, state)
        return operation.forward(x, w, b)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        _refuse_double_backward()
        x, weight, state = _saved(ctx)
        if ctx.output is not None:
            broadcast(ctx, ctx.output, ctx.operation.output_error(dy))
        mask = ctx.needs_input_grad[:3]
        carrier = ctx.feedback(weight, state) if mask[0] else weight
        dx, dw, db = ctx.operation.backward(dy, x, carrier.to(dy.dtype), mask)
        if dx is not None and ctx.clip:
            dx = dx.clamp(-1, 1)
        d_state = None
        if dw is not None and ctx.needs_input_grad[3]:
            # Where both are of one type a copy: no change in place of one gradient may reach the other.
            d_state = dw.clone() if dw.dtype == state.dtype else dw
        return dx, dw, db, d_state, None, None, None, None


class Direct(torch.autograd.Function):
    """y = op(x, W, b); in the backward, dx = B e with the error e of the output layers downstream."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        state: Tensor,
        operation: Operation,
        output: Output | None,
        receiver: Receiver,
    ) -> Tensor:
        """`state` is B, or the matrix of which the layer has columns. Its "gradient" is the product of what it
        brings and what that meets."""
        x, w, b = _cast(autocast_dtype(x), x, weight, bias)
        ctx.operation, ctx.output, ctx.receiver = operation, output, receiver
        if output is not None:
            ctx.targets = teaching.current()
        ctx.biotorch_inbox = Inbox()
        ctx.save_for_backward(x, weight, state)
        return operation.forward(x, w, b)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        _refuse_double_backward()
        x, weight, state = _saved(ctx)
        errors = ctx.biotorch_inbox.take()
        if ctx.output is not None and not (ctx.output.inferred and errors):
            error = ctx.operation.output_error(dy)
            if error.shape[-1] != ctx.output.stop - ctx.output.start:
                raise _stray_gradient(ctx.receiver.label)
            errors.append(broadcast(ctx, ctx.output, error))
        if not errors:
            raise _stray_gradient(ctx.receiver.label)
        needs_dx, *local, learns = ctx.needs_input_grad[:4]
        _, dw, db = ctx.operation.backward(dy, x, weight.to(dy.dtype), (False, *local))
        heard = ctx.operation, ctx.receiver, errors, x, state
        return _heard(*heard) if needs_dx else None, dw, db, _met(*heard) if learns else None, None, None, None


class Cut(torch.autograd.Function):
    """Identity forward; in the backward only the broadcast error passes, whatever gradient arrives."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, state: Tensor, operation: Operation, receiver: Receiver) -> Tensor:
        ctx.operation, ctx.receiver = operation, receiver
        ctx.biotorch_inbox = Inbox()
        # Shape, type and memory format of x are needed, not its values: a detached alias, which the
        # block may change in place, as it may the alias it gets.
        ctx.like = x.detach()
        ctx.save_for_backward(state)
        return x.detach()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        _refuse_double_backward()
        (state,) = _saved(ctx)
        errors = ctx.biotorch_inbox.take()
        if not errors:
            raise _stray_gradient(ctx.receiver.label)
        return _heard(ctx.operation, ctx.receiver, errors, ctx.like, state), None, None, None
