"""The fast gradient sign method."""

from __future__ import annotations

from torch import Tensor

from biotorch.robustness.attempt import Attempt
from biotorch.robustness.norms import project, steepest
from biotorch.robustness.white_box import WhiteBox


class FGSM(WhiteBox):
    """One step of the whole radius along the gradient (Goodfellow et al. 2015; the paper's equation 5).

    x_adv = x + epsilon sign(∇_x L(f(x), y)), clamped to [0, 1]; in L2 the step is epsilon g / |g|. Every
    image is perturbed, those that are misclassified anyway, too.
    """

    skips_solved = False

    def perturb(self, attempt: Attempt, index: Tensor) -> Tensor:
        images = attempt.images[index]
        gradient, losses, _ = self.ascent(attempt, images, index)
        attempt.record(losses, index)
        return project(images + self.epsilon * steepest(gradient, self.norm), images, self.epsilon, self.norm)

    @property
    def passes(self) -> tuple[int, int]:
        return 1, 1
