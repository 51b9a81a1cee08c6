"""The kernel: autograd Functions that carry errors backwards without weight transport.

Every layer of the package computes its output from `x`, `W` and `b` as usual. The Functions here
replace the one term of the backward pass that needs `W`: the gradient handed to the input.

- `Feedback` (feedback alignment, sign rules, backpropagation itself): dx is the layer's own vector-Jacobian
  product with the feedback weights B in the place of W (paper, equation 3). One fused call also gives dW and db.
- `Direct` (direct feedback alignment): dx is the error e of the network's output, projected by the layer's B
  (paper, equation 4). The chain of vector-Jacobian products is never computed.
- `Cut`: at the boundary of a residual block, lets only the broadcast error pass.

`broadcast` brings e from the output layer to the direct layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from biotorch.kernel import projection, teaching
from biotorch.kernel.broadcast import Inbox, Output, Receiver, broadcast
from biotorch.kernel.imperfection import Imperfection, read
from biotorch.kernel.projection import Operation


def _stray_gradient(label: str) -> RuntimeError:
    return RuntimeError(
        f"{label}: a gradient arrived that did not come through the network's output layer, so there is no "
        "error to project. Possible causes: the loss does not use the output layer; the output layer ran under "
        "reentrant checkpointing (set use_reentrant=False); it was converted or copied without the other layers "
        "(convert the whole network in one call); or "
        'another layer is the output: name it with biotorch.convert(model, ..., output="name"), or give a list of '
        "names if there are several heads (for a layer built by hand, output=True)."
    )


def _cast(dtype: torch.dtype | None, x: Tensor, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cast the operands to autocast's type. `x` is also saved in this type, because the backward gets dy in it."""
    if dtype is None:
        return x, w, b
    return x.to(dtype), w.to(dtype), None if b is None else b.to(dtype)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """Type in which autocast computes a matrix product with `x`, or None if autocast does not apply."""
    device = x.device.type
    if not torch.is_autocast_enabled(device) or x.dtype == torch.float64:
        return None
    return torch.get_autocast_dtype(device)


def _saved(ctx: Any) -> tuple[Tensor, ...]:
    """The tensors saved in the forward. Raises RuntimeError, with a clear message, if W or B changed since."""
    if torch.compiler.is_compiling():
        return ctx.saved_tensors  # type: ignore[no-any-return]
    try:
        return ctx.saved_tensors  # type: ignore[no-any-return]
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise RuntimeError(
            "the weight or feedback of a layer (or its input) was changed in place between forward and backward, "
            f"for example by an optimizer step: run the forward pass again. {error}"
        ) from error


def _refuse_double_backward() -> None:
    # Under `create_graph=True` the engine runs backwards with gradients enabled. It would differentiate
    # something that is not a derivative itself, so the result would mean nothing.
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            "double backward (create_graph=True) through a feedback layer is not defined: its gradient "
            "is not the derivative of its output. Use `with biotorch.true_gradients(model):` around the "
            "forward pass to differentiate the network itself."
        )


class Feedback(torch.autograd.Function):
    """y = op(x, W, b), whose backward computes dx with `feedback(W, B)` in the place of W."""

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
        imperfection: Imperfection | None = None,
    ) -> Tensor:
        """Compute y and save what the backward needs.

        `state` is the rule's B, or None if it has none. If it requires a gradient, it gets a copy of W's gradient.
        `output` is set on output layers; their backward broadcasts dy. `imperfection` distorts B in the backward.
        """
        x, w, b = _cast(autocast_dtype(x), x, weight, bias)
        ctx.operation, ctx.feedback, ctx.clip, ctx.output = operation, feedback, clip, output
        ctx.imperfection = imperfection
        if output is not None:
            ctx.targets = teaching.current()
        # W itself is saved beside its cast copy: a change of W before the backward must raise.
        ctx.save_for_backward(x, weight, state, w)
        return operation.forward(x, w, b)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        _refuse_double_backward()
        x, weight, state, w = _saved(ctx)
        if ctx.output is not None:
            broadcast(ctx, ctx.output, ctx.operation.output_error(dy))
        mask = ctx.needs_input_grad[:3]
        carrier = read(ctx.feedback(weight, state), ctx.imperfection) if mask[0] else weight
        carrier = (w if carrier is weight else carrier).to(dy.dtype)  # bf16 is slower than float32 in most operations
        dx, dw, db = ctx.operation.backward(dy, x, carrier, mask)
        if dx is not None and ctx.clip:
            dx = dx.clamp(-1, 1)
        d_state = None
        if dw is not None and ctx.needs_input_grad[3]:
            # A copy: an in-place change of one gradient must not reach the other.
            d_state = dw.clone() if dw.dtype == state.dtype else dw
        return dx, dw, db, d_state, None, None, None, None, None


class Direct(torch.autograd.Function):
    """y = op(x, W, b), whose backward computes dx = B e with the error e of the output layers downstream."""

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
        """Compute y and save what the backward needs.

        `state` is B, or the shared matrix of which B is some columns. Its "gradient" is the product of the error
        and the layer's input (`projection.learned`).
        """
        x, w, b = _cast(autocast_dtype(x), x, weight, bias)
        ctx.operation, ctx.output = operation, output
        if output is not None:
            ctx.targets = teaching.current()
        ctx.biotorch_inbox = Inbox(receiver)
        ctx.save_for_backward(x, weight, state, w)
        return operation.forward(x, w, b)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        _refuse_double_backward()
        x, _, state, w = _saved(ctx)
        receiver, errors = ctx.biotorch_inbox.receiver, ctx.biotorch_inbox.take()
        if ctx.output is not None and not (ctx.output.inferred and errors):
            error = ctx.operation.output_error(dy)
            if error.shape[-1] != ctx.output.stop - ctx.output.start:
                raise _stray_gradient(receiver.label)
            errors.append(broadcast(ctx, ctx.output, error))
        if not errors:
            raise _stray_gradient(receiver.label)
        needs_dx, *local, learns = ctx.needs_input_grad[:4]
        _, dw, db = ctx.operation.backward(dy, x, w.to(dy.dtype), (False, *local))
        errors = [error.heard_by(receiver) for error in errors] if needs_dx or learns else []
        heard = ctx.operation, receiver, errors, x, state
        dx = projection.projected(*heard) if needs_dx else None
        d_state = projection.learned(*heard) if learns else None
        return dx, dw, db, d_state, None, None, None


class Cut(torch.autograd.Function):
    """Identity in the forward; the backward hands on the projected broadcast error and drops the gradient it gets."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, state: Tensor, operation: Operation, receiver: Receiver) -> Tensor:
        ctx.operation = operation
        ctx.biotorch_inbox = Inbox(receiver)
        # Only shape, type and memory format are needed later; the block may change this alias in place.
        ctx.like = x.detach()
        ctx.save_for_backward(state)
        return x.detach()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        _refuse_double_backward()
        (state,) = _saved(ctx)
        receiver, errors = ctx.biotorch_inbox.receiver, ctx.biotorch_inbox.take()
        if not errors:
            raise _stray_gradient(receiver.label)
        errors = [error.heard_by(receiver) for error in errors]
        return projection.projected(ctx.operation, receiver, errors, ctx.like, state), None, None, None
