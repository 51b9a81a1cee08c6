"""AutoAttack."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, Unpack

import pyautoattack  # type: ignore[import-untyped]
import torch
from pyautoattack import checks
from torch import Tensor, nn

from biotorch.robustness import auto_pgd, library, square
from biotorch.robustness.attack import Common, require
from biotorch.robustness.attempt import Attempt, Gradient
from biotorch.robustness.white_box import WhiteBox

Version = Literal["standard", "rand"]


class AutoAttack(WhiteBox):
    """The ensemble by which robustness is usually reported (Croce and Hein 2020), without parameters to choose.

    `standard` is, in turn, on the images that are left: Auto-PGD on the cross-entropy; Auto-PGD on the targeted DLR
    loss, towards nine classes; FAB, towards nine classes; Square with 5,000 queries. `rand`, for networks with noise
    in them: Auto-PGD on the cross-entropy and on the DLR loss, with gradients averaged over 20 samples. Attacks and
    settings are those of the library pyautoattack, whose warnings become Python's.

    With fewer than ten classes, all the wrong ones are targets. The targeted DLR loss needs four classes: with three,
    `standard` runs Auto-PGD on the untargeted one in its place; that needs three, and is left out with two.

    A forward pass counts as a query of every image that it is about, those of the library's checks included.

    Args:
        model, epsilon, norm, gradient, seed, batch_size: as of `WhiteBox`. Images are (n, C, H, W) for `standard`.
        version: `standard` or `rand`.
    """

    fixed: ClassVar[Mapping[str, str]] = {"loss": "each of its attacks has its own"}

    def __init__(
        self,
        model: nn.Module,
        epsilon: float = 8 / 255,
        *,
        version: Version = "standard",
        gradient: Gradient = "true",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(model, epsilon, gradient=gradient, **common)
        known = typing.get_args(Version)
        require(version in known, f"version: {' or '.join(map(repr, known))} is needed, not {version!r}")
        self.version = version
        self._logger = library.Warner()

    def perturb(self, attempt: Attempt, index: Tensor) -> Tensor:
        if self.version == "standard":
            library.require_tiles(attempt.images, self.norm)
        shown = library.Shown(attempt, self.gradient, index)
        ensemble = self._ensemble(shown, attempt.images.device)
        self._check(shown, attempt, index)
        left = _Left(attempt, index)
        adversarial = library.withstand(attempt, index, left.counted(self._runs(shown, ensemble)), self.epsilon, self.norm)
        checks.check_square_sr(left.shares, logger=self._logger)
        return adversarial
