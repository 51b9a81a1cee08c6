"""The attack of TRADES."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from biotorch.robustness.attempt import Attempt
from biotorch.robustness.norms import project
from biotorch.robustness.pgd import PGD, PGDArguments

#: Standard deviation of the noise that the steps start from (Zhang et al. 2019, algorithm 1).
_START = 0.001


class TPGD(PGD):
    """PGD that drives the outputs away from those of the clean image (Zhang et al. 2019; the paper's appendix 6.3).

    It maximises KL(softmax f(x) ‖ softmax f(x_adv)) and never looks at the labels, except to see which images it
    has broken. It starts at x + 0.001 n with n normal, because the gradient at x itself is zero.

    Args:
        model, epsilon, steps, step_size, restarts, stop_at_success, gradient, norm, seed, batch_size: as of `PGD`.
    """

    fixed: ClassVar[Mapping[str, str]] = {
        "loss": "its loss is the KL divergence",
        "random_start": "it starts beside the image",
    }

    def __init__(self, model: nn.Module, epsilon: float = 8 / 255, **pgd: Unpack[PGDArguments]) -> None:
        for name in self.fixed.keys() & pgd:
            raise TypeError(f"{name}: TPGD takes none, {self.fixed[name]}")
        super().__init__(model, epsilon, **pgd)

    def start(self, attempt: Attempt, index: Tensor) -> Tensor:
        images = attempt.images[index]
        noise = torch.randn(images.shape, dtype=images.dtype, generator=attempt.generator).to(images.device)
        return project(images + _START * noise, images, self.epsilon, self.norm)

    def ascent(self, attempt: Attempt, points: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        clean = attempt.clean_outputs[index]
        return attempt.gradient(points, index, lambda outputs, _: _divergence(outputs, clean), self.gradient)

    def judge(self, attempt: Attempt, points: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            outputs = attempt.outputs(points, index)
        return _divergence(outputs, attempt.clean_outputs[index]), outputs


def _divergence(outputs: Tensor, clean: Tensor) -> Tensor:
    """KL(softmax(clean) ‖ softmax(outputs)) per example: (m,)."""
    pointwise = F.kl_div(F.log_softmax(outputs, 1), F.log_softmax(clean, 1), log_target=True, reduction="none")
    return pointwise.sum(1)
