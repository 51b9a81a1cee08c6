"""Errors for a training that diverges, which name the epoch, the step and the layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn

from biotorch.errors import DivergenceError

_CURE = (
    "Lower training.optimizer.lr, add training.warmup_epochs or training.clip_gradient_norm, "
    "or set model.mode.options.gradient_clip"
)


def diverged(
    model: nn.Module, loss: Tensor, epoch: int, step: int, backward: Callable[[Tensor], None]
) -> DivergenceError:
    """Create the error for a loss that is not finite, before the backward pass of `step`.

    `.grad` still holds the gradients of the previous update, which produced the present weights. The message names the
    layer closest to the output whose gradient is not finite. If all gradients are finite (because the step was too
    large), `backward` is run on the present loss, and its gradients are searched instead.
    """
    layer, when = _first_bad_gradient(model), "of the previous update"
    if layer is None:
        when = "of this step"
        model.zero_grad()
        backward(loss)
        layer = _first_bad_gradient(model)
    where = f"Seen from the output, layer {layer} is the first whose gradient {when} is not finite. " if layer else ""
    return DivergenceError(f"the loss is {loss.item()} at epoch {epoch}, step {step}. {where}{_CURE}")


def diverged_after(model: nn.Module, loss: float, epoch: int, step: int) -> DivergenceError:
    """Create the error for a validation loss that is not finite after the last update of an epoch."""
    layer = _first_bad_gradient(model)
    where = f"Seen from the output, layer {layer} is the first whose gradient is not finite. " if layer else ""
    return DivergenceError(f"the validation loss is {loss} after epoch {epoch}, step {step}. {where}{_CURE}")


def require_finite(model: nn.Module, epoch: int, step: int) -> None:
    """Raise DivergenceError if a weight is not finite, because such a state must not be saved."""
    layer = _first_bad(model.named_parameters())
    if layer is not None:
        raise DivergenceError(f"the weights of layer {layer} are not finite after epoch {epoch}, step {step}. {_CURE}")


def _first_bad_gradient(model: nn.Module) -> str | None:
    return _first_bad((name, weight.grad) for name, weight in model.named_parameters())


def _first_bad(tensors: Iterable[tuple[str, Tensor | None]]) -> str | None:
    """Layer of the last tensor that is not finite, which is closest to the output if layers are in forward order."""
    bad = [name for name, value in tensors if value is not None and not value.detach().isfinite().all()]
    return (bad[-1].rpartition(".")[0] or bad[-1]) if bad else None
