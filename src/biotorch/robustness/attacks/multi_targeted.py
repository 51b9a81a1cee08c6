"""Multi-targeted PGD: towards one wrong class after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn

from biotorch.robustness.attacks.attempt import Attempt
from biotorch.robustness.attacks.gradient import PGD, PGDArguments
from biotorch.robustness.attacks.inputs import require_counts
from biotorch.robustness.attacks.losses import Loss, towards


class MultiTargeted(PGD):
    """Projected gradient descent towards each of several classes in turn (Gowal et al. 2019).

    The attack towards class t raises z_t - z_y, where y is the label. Unlike the cross-entropy and the margin, this
    loss depends on two outputs alone, so an output that never wins cannot take its gradient. An image counts as broken
    if any wrong class wins.

    Args:
        model, epsilon, steps, step_size, random_start, stop_at_success, gradient, norm, seed, batch_size: see `PGD`.
        classes: number of classes to try, by the height of their outputs at the image.
        first: classes that are tried before all others; default: the labels of the batch. An output that is the label
            of no image may be there only to draw the attack.

    Examples:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> images = torch.rand(4, 1, 8, 8)
        >>> attack = biotorch.robustness.MultiTargeted(model, epsilon=0.5, steps=10)
        >>> attack.run(images, model(images).argmax(1)).robust.sum().item()
        0
    """

    fixed: ClassVar[Mapping[str, str]] = {
        "loss": "its losses are z_t - z_y",
        "restarts": "it starts once for each class",
    }

    targeted: ClassVar[bool] = False

    def __init__(
        self,
        model: nn.Module,
        epsilon: float = 8 / 255,
        *,
        classes: int = 9,
        first: Sequence[int] | None = None,
        **pgd: Unpack[PGDArguments],
    ) -> None:
        super().__init__(model, epsilon, **pgd)
        (self.classes,) = require_counts(classes=classes)
        self.first = first
        self._targets = torch.empty(0, dtype=torch.int64)

    def perturb(self, attempt: Attempt, index: Tensor) -> Tensor:
        best = attempt.images[index].clone()
        unbroken = torch.arange(len(index), device=best.device)
        for targets in _ranked(attempt, self.classes, self.first).unbind(1):
            self._targets = targets
            points, broken, _ = self._descend(attempt, index[unbroken], record=False)
            best[unbroken] = points
            unbroken = unbroken[~broken]
            if not len(unbroken):
                break
        return best

    def objective(self, attempt: Attempt, index: Tensor) -> Loss:
        return towards(self._targets[index])

    @property
    def passes(self) -> tuple[int, int]:
        return self.classes * (self.steps + 1), self.classes * self.steps


def _ranked(attempt: Attempt, classes: int, first: Sequence[int] | None) -> Tensor:
    """Wrong classes of each image (n, at most `classes`): those that come first, by the height of their outputs."""
    outputs = attempt.clean_outputs.nan_to_num()
    count = outputs.shape[1]
    early = torch.zeros(count, dtype=torch.bool, device=outputs.device)
    early[attempt.labels if first is None else torch.tensor(first, device=outputs.device)] = True
    order = outputs.argsort(1, descending=True)
    order = order.gather(1, (~early[order]).to(torch.int8).argsort(dim=1, stable=True))
    wrong = order[order != attempt.labels[:, None]].view(len(outputs), count - 1)
    return wrong[:, :classes]
