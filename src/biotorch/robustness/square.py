"""The Square attack."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Unpack

import torch
from pyautoattack.square import SquareAttack  # type: ignore[import-untyped]
from torch import Tensor, nn

from biotorch.robustness import library
from biotorch.robustness.attack import Attack, Common, is_number, require, require_counts
from biotorch.robustness.attempt import Attempt


class Square(Attack):
    """Random squares, kept where they raise the loss: a search without gradients (Andriushchenko et al. 2020).

    It starts from vertical stripes of ±epsilon (L2: from tiles) and changes one square of every image per query; the
    squares shrink on a schedule that is stretched over the queries. The search is that of the library pyautoattack.

    Args:
        model, epsilon, norm, seed, batch_size: as of `Attack`. Images are (n, C, H, W).
        queries: forward passes per image and restart, at most.
        p_init: share of the image that the first square covers.
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
        require(
            is_number(p_init) and 0 < p_init <= 1, f"p_init: a number above 0, at most 1, is needed, not {p_init!r}"
        )
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
            resc_schedule=True,
        )
        library.start(library.seed(attempt))
        return library.withstand(attempt, index, self._runs(attempt, search), self.epsilon, self.norm)

    def _runs(self, attempt: Attempt, search: SquareAttack) -> Iterator[library.Run]:
        for _ in range(self.restarts):
            yield run(attempt, search)

    @property
    def passes(self) -> tuple[int, int]:
        return self.restarts * (self.queries + 1), 0


def run(attempt: Attempt, search: SquareAttack) -> library.Run:
    """One start of the library's search. It sees fewer and fewer images, and counts the queries itself."""

    def start(images: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        search.init_hyperparam(images)
        queries, points = search.attack_single_run(images, labels)
        attempt.queries[index.cpu()] += queries.cpu().to(torch.int64)
        return points  # type: ignore[no-any-return]

    return start
