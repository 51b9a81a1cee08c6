"""What a rule sees of an optimizer's step on one weight matrix."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Generator, Tensor


class Update:
    """One optimizer step on W, for the rules that learn or redraw their B.

    Everything but `weight` is local to the connection or travels as activity. Reading `weight` is weight
    transport: `biotorch.audit` replaces it by noise and looks whether B becomes another.

    Attributes:
        weight: W after the step, (out, in, ...).
        feedback: B, to be changed in place.
        layer: its dotted name, for messages.
        number: 1 for the first update since the conversion.
        rate: learning rate of W.
        decay: `weight_decay` of W's optimizer, 0 where it has none.
        gradient: in the shape of W, what it descends by: over all processes, clipped, unscaled.
        product: in the shape of B, sum over the batch of e^T x: the error that a direct rule hands to the layer
            with the input that it meets there. None unless the rule asks for it (`observes_product`), and where no
            backward pass has left one.
        groups: those of a convolution; 1 elsewhere.
        rescaled: by which factor `constrain_weights` has rescaled W after the step.
    """

    def __init__(
        self,
        weight: Tensor,
        feedback: Tensor,
        draw: Callable[[], Generator],
        *,
        layer: str = "",
        number: int = 1,
        rate: float = 0.0,
        decay: float = 0.0,
        gradient: Tensor | None = None,
        product: Tensor | None = None,
        groups: int = 1,
        rescaled: float | Tensor = 1.0,
        descend: Callable[..., None] | None = None,
        forward: Tensor | None = None,
    ) -> None:
        """`descend(gradient, **settings)` steps B by an optimizer; default: gradient descent."""
        self.weight, self.feedback, self._draw = weight, feedback, draw
        self.layer, self.number, self.rate, self.decay = layer, number, rate, decay
        self.gradient = torch.zeros_like(weight) if gradient is None else gradient
        self.product, self.groups, self.rescaled = product, groups, rescaled
        self._descend = self._step if descend is None else descend
        self._forward = weight if forward is None else forward

    @functools.cached_property
    def generator(self) -> Generator:
        """The layer's own, for this update: the same on every process and in a resumed run."""
        return self._draw()

    def descend(self, gradient: Tensor, *, rate: float | None = None, decay: float | None = None) -> None:
        """Step B down `gradient` as W's optimizer would: of its type and settings, with B's own momenta and decay.

        Args:
            gradient: in the shape of B.
            rate, decay: in the place of the optimizer's `lr` and `weight_decay`.

        Raises:
            RuntimeError: the optimizer evaluates the loss itself (LBFGS), or another of its type cannot be built.
        """
        settings = {"lr": rate, "weight_decay": decay}
        self._descend(gradient, **{name: value for name, value in settings.items() if value is not None})

    def _step(self, gradient: Tensor, lr: float | None = None, weight_decay: float | None = None) -> None:
        rate, decay = self.rate if lr is None else lr, self.decay if weight_decay is None else weight_decay
        self.feedback.sub_(gradient + decay * self.feedback, alpha=rate)

    def noise(self, n: int) -> Tensor:
        """n patterns of N(0, 1) noise at the layer's input (a convolution: at one position), (n, fan_in)."""
        fan_in = self._forward[0].numel()
        fresh = torch.empty(n, fan_in, device=self.generator.device).normal_(generator=self.generator)
        return fresh.to(self._forward)

    def respond(self, x: Tensor) -> Tensor:
        """What the layer answers to activity (n, fan_in) at its input, bias off: x W^T, (n, out)."""
        return x @ self._forward.flatten(1).T
