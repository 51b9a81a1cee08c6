"""A training that diverges says where it did."""

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
    """The error for a loss that is not finite, before the backward pass of `step`.

    `.grad` still holds the gradients of the update before, which made the present weights: going backwards
    from the output, the first of them that is not finite names the layer. Where all are finite (the step
    itself was too large), `backward` is run on the present loss, whose gradients take their place.
    """
    layer, when = _first_bad_gradient(model), "of the update before"
    if layer is None:
        when = "of this step"
        model.zero_grad()
        backward(loss)
        layer = _first_bad_gradient(model)
    where = f"Going backwards, the first gradient {when} that is not finite is that of layer {layer}. " if layer else ""
    return DivergenceError(f"the loss is {loss.item()} at epoch {epoch}, step {step}. {where}{_CURE}")


def diverged_after(model: nn.Module, loss: float, epoch: int, step: int) -> DivergenceError:
    """The error for a validation loss that is not finite after the last update of an epoch."""
    layer = _first_bad_gradient(model)
    where = f"Going backwards, its first gradient that is not finite is that of layer {layer}. " if layer else ""
    return DivergenceError(f"the loss on validation is {loss} after epoch {epoch}, step {step}. {where}{_CURE}")


def require_finite(model: nn.Module, epoch: int, step: int) -> None:
    """Raise DivergenceError if a weight is not finite: such a state is never saved."""
    layer = _first_bad(model.named_parameters())
    if layer is not None:
        raise DivergenceError(f"the weights of layer {layer} are not finite after epoch {epoch}, step {step}. {_CURE}")


def _first_bad_gradient(model: nn.Module) -> str | None:
    return _first_bad((name, weight.grad) for name, weight in model.named_parameters())


def _first_bad(tensors: Iterable[tuple[str, Tensor | None]]) -> str | None:
    """The layer of the last tensor that is not finite: networks register their layers in forward order."""
    bad = [name for name, value in tensors if value is not None and not value.detach().isfinite().all()]
    return (bad[-1].rpartition(".")[0] or bad[-1]) if bad else None
