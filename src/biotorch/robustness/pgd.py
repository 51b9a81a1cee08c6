"""Projected gradient descent."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor, nn

from biotorch.robustness.attack import is_number, require, require_counts
from biotorch.robustness.attempt import Attempt, classified
from biotorch.robustness.losses import LOSSES
from biotorch.robustness.norms import project, random_point, steepest
from biotorch.robustness.white_box import WhiteBox, WhiteBoxArguments


class PGDArguments(WhiteBoxArguments, total=False):
    """Arguments of every attack in steps, see `PGD`."""

    steps: int
    step_size: float | None
    random_start: bool
    restarts: int
    stop_at_success: bool


class PGD(WhiteBox):
    """Steps along the gradient, each projected back into the ball (Madry et al. 2018; the paper's equation 6).

    x_{t+1} = Π(x_t + alpha sign(∇_x L(f(x_t), y))), where Π projects into the ball of radius epsilon around x
    and into [0, 1]; in L2 the step is alpha g / |g|.

    Args:
        model, epsilon, gradient, loss, norm, seed, batch_size: as of `WhiteBox`.
        steps: number of steps.
        step_size: alpha; default: 2.5 epsilon / steps.
        random_start: start at a random point of the ball instead of the image.
        restarts: independent starts; an image is broken if one of them breaks it.
        stop_at_success: take the first point that is misclassified, and spend no further step on its image. If
            False, all steps are made and the last point is taken: that of the highest loss is then usually deeper
            inside the wrong class, as transfer, adversarial training and networks with noise in them want it.
    """

    def __init__(
        self,
        model: nn.Module,
        epsilon: float = 8 / 255,
        *,
        steps: int = 40,
        step_size: float | None = None,
        random_start: bool = True,
        restarts: int = 1,
        stop_at_success: bool = True,
        **white_box: Unpack[WhiteBoxArguments],
    ) -> None:
        super().__init__(model, epsilon, **white_box)
        require_counts(steps=steps, restarts=restarts)
        require(
            step_size is None or (is_number(step_size) and step_size > 0),
            f"step_size: a number above 0 is needed, not {step_size!r}",
        )
        self.steps, self.random_start, self.restarts = steps, random_start, restarts
        self.step_size = 2.5 * self.epsilon / steps if step_size is None else float(step_size)
        self.stop_at_success = self.skips_solved = stop_at_success

    def perturb(self, attempt: Attempt, index: Tensor) -> Tensor:
        best = attempt.images[index].clone()
        highest = torch.full((len(index),), -torch.inf, device=best.device, dtype=best.dtype)
        open_ones = torch.arange(len(index), device=best.device)
        for restart in range(self.restarts):
            points, broken, losses = self._descend(attempt, index[open_ones], record=restart == 0)
            # What breaks the image counts more than any loss.
            losses = losses.masked_fill(broken, torch.inf)
            better = losses > highest[open_ones]
            best[open_ones[better]], highest[open_ones[better]] = points[better], losses[better].to(highest)
            if self.stop_at_success:
                open_ones = open_ones[~broken]
            if not len(open_ones):
                break
        return best

    def _descend(self, attempt: Attempt, index: Tensor, record: bool) -> tuple[Tensor, Tensor, Tensor]:
        """One start: the points it ends at, whether each is misclassified, and their losses."""
        images, labels = attempt.images[index], attempt.labels[index]
        points = self.start(attempt, index)
        final = torch.full((len(index),), -torch.inf, device=images.device, dtype=images.dtype)
        broken = torch.zeros(len(index), dtype=torch.bool, device=images.device)
        active = torch.arange(len(index), device=images.device)
        # The last point is looked at to stop, to choose among starts, and for figures.
        judged = attempt.judged or self.stop_at_success or self.restarts > 1
        for step in range(self.steps + judged):
            if step < self.steps:
                gradient, losses, outputs = self.ascent(attempt, points[active], index[active])
            else:
                losses, outputs = self.judge(attempt, points[active], index[active])
            if record:
                attempt.record(losses, index[active])
            final[active] = losses.to(final)
            broken[active] = ~classified(outputs, labels[active])
            if step == self.steps:
                break
            if self.stop_at_success:
                going = ~broken[active]
                active, gradient = active[going], gradient[going]
                if not len(active):
                    break
            moved = points[active] + self.step_size * steepest(gradient, self.norm)
            points[active] = project(moved, images[active], self.epsilon, self.norm)
        return points, broken, final

    def start(self, attempt: Attempt, index: Tensor) -> Tensor:
        """Where the steps begin: (m, ...)."""
        images = attempt.images[index]
        if not self.random_start:
            return images.clone()
        return random_point(images, self.epsilon, self.norm, attempt.generator)

    def judge(self, attempt: Attempt, points: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (m,) and outputs (m, C) at the points, without a gradient."""
        with torch.no_grad():
            outputs = attempt.outputs(points, index)
        return LOSSES[self.loss](outputs, attempt.labels[index]), outputs

    @property
    def passes(self) -> tuple[int, int]:
        return self.restarts * (self.steps + 1), self.restarts * self.steps
