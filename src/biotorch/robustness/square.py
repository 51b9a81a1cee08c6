"""The Square attack."""

from __future__ import annotations

from typing import Any, Literal, Unpack

import torch
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from biotorch.robustness import library
from biotorch.robustness.attack import Attack, Common, is_number, require, require_counts
from biotorch.robustness.attempt import Attempt


class Square(Attack):
    """Random search with square patches, by outputs alone (Andriushchenko et al. 2020; the paper's appendix 6.3).

    Run by pyautoattack, one restart at a time. Its schedule of patch sizes is that of 10,000 queries, as in
    AutoAttack, whatever the budget.

    Args:
        model, epsilon, norm, seed, batch_size: as of `Attack`. Images are (n, C, H, W).
        queries: forward passes per image and restart, at most.
        p_init: share of the pixels that the first patches cover.
        loss: `margin` or `ce`.
        restarts: independent starts; an image is broken if one of them breaks it.
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
        library.require_tiles(attempt.images, self.norm)
        shown = library.Shown(attempt, "true", index[:0])
        search = SquareAttack(
            shown,
            norm=library.NORMS[self.norm],
            n_queries=self.queries - 1,  # beside that of the start
            eps=self.epsilon,
            p_init=self.p_init,
            loss=self.loss,
            resc_schedule=False,
        )
        library.start(library.seed(attempt))
        runs = [run(shown, search)] * self.restarts
        return library.withstand(attempt, index, runs, self.epsilon, self.norm)[0]

    @property
    def passes(self) -> tuple[int, int]:
        return self.restarts * self.queries, 0


def run(shown: library.Shown, search: Any) -> library.Run:
    """One start of the library's search. It looks at fewer and fewer of its images, and counts the queries itself."""

    def start(images: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        shown.index = index[:0]
        search.init_hyperparam(images)
        queries, points = search.attack_single_run(images, labels)
        shown.attempt.queries[index.cpu()] += queries.cpu().to(torch.int64)
        return points  # type: ignore[no-any-return]

    return start
