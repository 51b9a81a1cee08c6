"""Auto-PGD."""

from __future__ import annotations

from typing import Unpack

import torch
from pyautoattack.autopgd_base import APGDAttack
from torch import Tensor, nn

from biotorch.robustness.attack import require, require_counts
from biotorch.robustness.attempt import Attempt
from biotorch.robustness.library import LOGGER, NORMS, running, share
from biotorch.robustness.norms import project
from biotorch.robustness.white_box import WhiteBox, WhiteBoxArguments


class AutoPGD(WhiteBox):
    """PGD with momentum that halves its step where the loss stops rising (Croce and Hein 2020), by pyautoattack.

    Not the paper's "APGD", which is `EOTPGD`.

    Args:
        model, epsilon, gradient, norm, seed, batch_size: as of `WhiteBox`.
        loss: `ce` or `dlr`.
        steps: number of steps.
        restarts: independent starts.
        samples: gradients per step, averaged, for networks with noise in them.
    """

    def __init__(
        self,
        model: nn.Module,
        epsilon: float = 8 / 255,
        *,
        steps: int = 100,
        restarts: int = 1,
        samples: int = 1,
        **white_box: Unpack[WhiteBoxArguments],
    ) -> None:
        super().__init__(model, epsilon, **white_box)
        require_counts(steps=steps, restarts=restarts, samples=samples)
        require(self.loss in ("ce", "dlr"), f"loss: AutoPGD knows ce and dlr, not {self.loss!r}")
        self.steps, self.restarts, self.samples = steps, restarts, samples

    def perturb(self, attempt: Attempt, index: Tensor) -> Tensor:
        images, labels = attempt.images[index], attempt.labels[index]
        with running(attempt, self.gradient) as network:
            attack = APGDAttack(
                network,
                n_iter=self.steps,
                norm=NORMS[self.norm],
                n_restarts=self.restarts,
                eps=self.epsilon,
                seed=torch.initial_seed(),
                loss=self.loss,
                eot_iter=self.samples,
                device=images.device,
                logger=LOGGER,
            )
            found = attack.perturb(images.float(), labels)
        share(attempt, index, network)
        return project(found.to(images), images, self.epsilon, self.norm)

    @property
    def passes(self) -> tuple[int, int]:
        each = self.restarts * self.samples * (self.steps + 1)
        return each + 1, each
