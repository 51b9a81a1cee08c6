"""The Square attack."""

from __future__ import annotations

from typing import Literal, Unpack

import torch
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from biotorch.robustness.attack import Attack, Common, is_number, require, require_counts
from biotorch.robustness.attempt import Attempt
from biotorch.robustness.library import NORMS, running
from biotorch.robustness.norms import project


class Square(Attack):
    """Random search with square patches, by outputs alone (Andriushchenko et al. 2020; the paper's appendix 6.3).

    Run by pyautoattack, one restart at a time. Its schedule of patch sizes is that of 10,000 queries, as in
    AutoAttack, whatever the budget.

    Args:
        model, epsilon, norm, seed, batch_size: as of `Attack`.
        queries: forward passes per image and restart, at most.
        p_init: share of the pixels that the first patches cover.
        loss: `margin` or `ce`.
        restarts: independent starts.
    """

    def __init__(
        self,
        model: nn.Module,
        epsilon: float = 8 / 255,
        *,
        queries: int = 5000,
        p_init: float = 0.8,
        loss: Literal["margin", "ce"] = "margin",
        restarts: int = 1,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(model, epsilon, **common)
        require_counts(queries=queries, restarts=restarts)
        require(is_number(p_init) and 0 < p_init <= 1, f"p_init: a share of the pixels is needed, not {p_init!r}")
        require(loss in ("margin", "ce"), f"loss: 'margin' or 'ce' is needed, not {loss!r}")
        self.queries, self.p_init, self.loss, self.restarts = queries, p_init, loss, restarts

    def perturb(self, attempt: Attempt, index: Tensor) -> Tensor:
        images, labels = attempt.images[index], attempt.labels[index]
        require(images.dim() == 4, f"images: Square needs (n, C, H, W), not {tuple(images.shape)}")
        best = images.clone()
        standing = torch.arange(len(index), device=images.device)
        for _ in range(self.restarts):
            with running(attempt, "true") as network:
                attack = SquareAttack(
                    network,
                    norm=NORMS[self.norm],
                    n_queries=self.queries - 1,  # it does not count the one that looks at its start
                    eps=self.epsilon,
                    p_init=self.p_init,
                    loss=self.loss,
                    resc_schedule=False,
                    device=images.device,
                )
                attack.init_hyperparam(images)
                asked, found = attack.attack_single_run(images[standing].float(), labels[standing])
            attempt.queries[index[standing].cpu()] += asked.long().cpu()
            best[standing] = project(found.to(images), images[standing], self.epsilon, self.norm)
            standing = standing[attempt.right(best[standing], index[standing])]
            if not len(standing):
                break
        return best

    @property
    def passes(self) -> tuple[int, int]:
        return self.restarts * (self.queries + 1), 0
