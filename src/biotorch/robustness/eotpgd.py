"""Projected gradient descent along an averaged gradient."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor, nn

from biotorch.robustness.attack import require_counts
from biotorch.robustness.attempt import Attempt
from biotorch.robustness.pgd import PGD, PGDArguments


class EOTPGD(PGD):
    """PGD along the mean of several gradients at the same point (Zimmermann 2019), for networks with noise in them.

    g = 1/k Σ_i ∇_x L(f_i(x), y), where f_1 ... f_k are evaluations of the same network. The paper calls it APGD,
    "averaged PGD" (appendix 6.3), which is not Auto-PGD. A deterministic network returns k equal gradients: the
    result is that of PGD, at k times the cost.

    Args:
        model, epsilon, steps, step_size, random_start, restarts, stop_at_success, gradient, loss, norm, seed,
            batch_size: as of `PGD`.
        samples: k, gradients per step.

    By default it does not stop at success: of a network with noise in it, the first point that is misclassified lies
    so near the boundary that the next evaluation often sees it on the other side.
    """

    def __init__(
        self, model: nn.Module, epsilon: float = 8 / 255, *, samples: int = 10, **pgd: Unpack[PGDArguments]
    ) -> None:
        pgd.setdefault("stop_at_success", False)
        super().__init__(model, epsilon, **pgd)
        require_counts(samples=samples)
        self.samples = samples

    def ascent(self, attempt: Attempt, points: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The means over the samples of gradient, losses and outputs."""
        parts = [super(EOTPGD, self).ascent(attempt, points, index) for _ in range(self.samples)]
        gradient, losses, outputs = (torch.stack(part).mean(0) for part in zip(*parts, strict=True))
        return gradient, losses, outputs

    @property
    def passes(self) -> tuple[int, int]:
        return self.restarts * (self.samples * self.steps + 1), self.restarts * self.samples * self.steps
