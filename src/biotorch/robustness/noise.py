"""Noise, which every attack has to beat."""

from __future__ import annotations

import torch
from torch import Tensor

from biotorch.robustness.attack import Attack
from biotorch.robustness.attempt import Attempt
from biotorch.robustness.norms import project, steepest


class RandomSigns(Attack):
    """A random corner of the ball: x + epsilon s with signs s, in L2 of that length; clamped to [0, 1].

    An attack that does no better has learned nothing from the network. Every image is perturbed, once.
    """

    skips_solved = False

    def perturb(self, attempt: Attempt, index: Tensor) -> Tensor:
        images = attempt.images[index]
        coins = torch.randint(0, 2, images.shape, generator=attempt.generator, dtype=torch.int8).to(images.device)
        signs = steepest((2 * coins - 1).to(images.dtype), self.norm)
        return project(images + self.epsilon * signs, images, self.epsilon, self.norm)

    @property
    def passes(self) -> tuple[int, int]:
        return 1, 0
