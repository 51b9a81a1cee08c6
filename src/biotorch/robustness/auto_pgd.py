"""Auto-PGD."""

from __future__ import annotations

from typing import Any, Unpack

from pyautoattack.autopgd_base import APGDAttack
from torch import Tensor, nn

from biotorch.robustness import library
from biotorch.robustness.attack import require, require_counts
from biotorch.robustness.attempt import Attempt
from biotorch.robustness.white_box import WhiteBox, WhiteBoxArguments


class AutoPGD(WhiteBox):
    """PGD with momentum that chooses its step sizes itself (Croce and Hein 2020, algorithm 1).

    The first step is 2 epsilon long; at checkpoints it is halved, and the search goes back to the best point so far,
    where the loss has risen in too few steps. Run by pyautoattack, one restart at a time; it makes all of its steps
    with every image, and starts at a random point of the surface of the ball. Not the paper's "APGD": that is `EOTPGD`.

    Args:
        model, epsilon, norm, gradient, seed, batch_size: as of `WhiteBox`.
        loss: `ce` or `dlr`; the latter needs three classes.
        steps: number of steps.
        restarts: independent starts; an image is broken if one of them breaks it.
        samples: gradients averaged per step, for networks with noise in them.
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
        require(self.loss in ("ce", "dlr"), f"loss: AutoPGD knows ce and dlr, not {self.loss!r}")
        require_counts(steps=steps, restarts=restarts, samples=samples)
        self.steps, self.restarts, self.samples = steps, restarts, samples
        self._logger = library.Warner()

    def perturb(self, attempt: Attempt, index: Tensor) -> Tensor:
        classes = attempt.clean_outputs.shape[1]
        require(
            self.loss == "ce" or classes >= 3,
            f"loss: 'dlr' needs at least three classes, and there are {classes}: take 'ce'",
        )
        shown = library.Shown(attempt, self.gradient, index)
        search = APGDAttack(
            shown,
            n_iter=self.steps,
            norm=library.NORMS[self.norm],
            eps=self.epsilon,
            loss=self.loss,
            eot_iter=self.samples,
            device=attempt.images.device,
            logger=self._logger,
        )
        library.start(library.seed(attempt))
        runs = [run(shown, search)] * self.restarts
        return library.withstand(attempt, index, runs, self.epsilon, self.norm)[0]

    @property
    def passes(self) -> tuple[int, int]:
        points = self.samples * (self.steps + 1)
        return self.restarts * points, self.restarts * points


def run(shown: library.Shown, search: Any) -> library.Run:
    """One start of the library's search: its last misclassified points, or else those of the highest loss."""

    def start(images: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        shown.index = index
        search.init_hyperparam(images)
        best, right, _, adversarial = search.attack_single_run(images, labels)
        return best.where(right.bool().reshape(-1, *[1] * (best.dim() - 1)), adversarial)  # type: ignore[no-any-return]

    return start
