"""The base of attacks that follow a gradient."""

from __future__ import annotations

import typing
from typing import ClassVar, Unpack

from torch import Tensor, nn

from biotorch.robustness.attack import Attack, Common, require
from biotorch.robustness.attempt import Attempt, Gradient
from biotorch.robustness.losses import LOSSES, LossName


class WhiteBoxArguments(Common, total=False):
    """Arguments of every attack that follows a gradient, see `WhiteBox`."""

    gradient: Gradient
    loss: LossName


class WhiteBox(Attack):
    """An attack that follows the gradient of a loss with respect to the image.

    Args:
        model, epsilon, norm, seed, batch_size: as of `Attack`.
        gradient: `true`, the network's own, which is what an attacker with the weights has; or `feedback`,
            what the network's learning rule sends back to the image in its place (a direct rule: B_1 e with
            the error e of the attacked batch). The latter is what the paper measured (section 4.2).
        loss: `ce`, `margin` or `dlr`, see `biotorch.robustness.losses`.
    """

    white_box: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        epsilon: float = 8 / 255,
        *,
        gradient: Gradient = "true",
        loss: LossName = "ce",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(model, epsilon, **common)
        known = typing.get_args(Gradient)
        require(gradient in known, f"gradient: {' or '.join(map(repr, known))} is needed, not {gradient!r}")
        require(loss in LOSSES, f"loss: one of {', '.join(LOSSES)} is needed, not {loss!r}")
        self.gradient, self.loss = gradient, loss

    def ascent(self, attempt: Attempt, points: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient, losses and outputs at the points, see `Attempt.gradient`."""
        return attempt.gradient(points, index, LOSSES[self.loss], self.gradient)
